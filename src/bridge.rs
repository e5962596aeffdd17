//! Answers on their way to JavaScript: the only file that knows Node-API's threads.
//!
//! Native threads append to one batch; the first of a batch wakes the event loop, which takes all that has gathered in
//! one call. The threadsafe function is weak, so an idle addon does not keep the process alive; a call in flight does.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bson::Document;
use napi::Status;
use napi::bindgen_prelude::{Buffer, FnArgs, Function, Uint32Array};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, sys};

use crate::client::NativeLease;
use crate::error::Error;
use crate::keeper::Pulse;
use crate::lease::{Lease, Moment};
use crate::store::Locked;

/// What JavaScript's function gets: `[call, kind, end]` per answer, the answers' BSON end to end (each from the `end`
/// of the one before), and the leases of the answers `LOCKED` and `CLAIMED`, one for each document, in order.
pub type Batched = FnArgs<(Uint32Array, Buffer, Vec<NativeLease>)>;

type Wake = ThreadsafeFunction<(), (), Batched, Status, false, true>;

/// Kinds of answers, as JavaScript reads them.
mod kind {
    /// Nothing: refused, lost or gone.
    pub const NOTHING: u32 = 0;
    /// A document.
    pub const DOCUMENT: u32 = 1;
    /// A document that is locked now, with its lease.
    pub const LOCKED: u32 = 2;
    /// An error's report.
    pub const FAILURE: u32 = 3;
    /// Not an answer: the watched lock of this number is lost.
    pub const LOSS: u32 = 4;
    /// Documents that are locked now, end to end, with a lease each.
    pub const CLAIMED: u32 = 5;
}

/// What a call came to.
pub enum Outcome {
    /// Refused, lost or gone.
    Nothing,
    /// The document afterwards.
    Document(Document),
    /// The document, and the lease that it is locked with.
    Locked(Locked),
    /// Documents, and the leases that they are locked with.
    Claimed(Vec<Locked>),
}

#[derive(Default)]
struct Batch {
    heads: Vec<u32>,
    bytes: Vec<u8>,
    leases: Vec<Arc<Lease>>,
}

/// What native threads and the event loop share.
#[derive(Default)]
struct Shared {
    batch: Mutex<Batch>,
    in_flight: AtomicU32,
    function: AtomicPtr<sys::napi_threadsafe_function__>,
    /// Since when the event loop has been asked for a sign of life and has not given it.
    asked: Mutex<Option<Moment>>,
}

/// The way back to one environment's event loop.
pub struct Bridge {
    shared: Arc<Shared>,
    wake: Wake,
}

impl Bridge {
    /// A bridge to the function that takes the batches.
    pub fn new(on_answers: &Function<'_, Batched, ()>) -> napi::Result<Arc<Self>> {
        let shared = Arc::new(Shared::default());
        let drain = Arc::clone(&shared);
        let wake = on_answers
            .build_threadsafe_function::<()>()
            .callee_handled::<false>()
            .weak::<true>()
            .build_callback(move |context| Ok(drain.take(context.env)))?;
        shared.function.store(wake.raw(), Ordering::Release);
        Ok(Arc::new(Self { shared, wake }))
    }

    /// Notes that a call begins; the process stays alive until it is answered. On the JavaScript thread only.
    pub fn begin(self: &Arc<Self>, env: Env, call: u32) -> Answer {
        if self.shared.in_flight.fetch_add(1, Ordering::AcqRel) == 0 {
            // SAFETY: we are on the JavaScript thread of a living environment, and `self.wake` keeps the function.
            unsafe { sys::napi_ref_threadsafe_function(env.raw(), self.wake.raw()) };
        }
        Answer { bridge: Arc::clone(self), call, given: false }
    }

    /// Tells JavaScript that the lock that it watches under this number is lost.
    pub fn tell_loss(&self, number: u32) {
        self.push(number, kind::LOSS, &[], []);
    }

    fn push(
        &self,
        call: u32,
        kind: u32,
        bytes: &[u8],
        leases: impl IntoIterator<Item = Arc<Lease>>,
    ) {
        let first = {
            let mut batch = self.shared.batch.lock().unwrap_or_else(PoisonError::into_inner);
            let first = batch.heads.is_empty();
            batch.bytes.extend_from_slice(bytes);
            let end = u32::try_from(batch.bytes.len()).unwrap_or(u32::MAX);
            batch.heads.extend([call, kind, end]);
            batch.leases.extend(leases);
            first
        };
        if first {
            // An environment that is going away takes no answers, and nobody is left to miss them.
            self.wake.call((), ThreadsafeFunctionCallMode::NonBlocking);
        }
    }
}

impl Pulse for Bridge {
    fn stalled_for(&self, now: Moment) -> Duration {
        let mut asked = self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = *asked {
            return now.since(since);
        }
        *asked = Some(now);
        drop(asked);
        self.wake.call((), ThreadsafeFunctionCallMode::NonBlocking);
        Duration::ZERO
    }
}

impl Shared {
    fn take(&self, env: Env) -> Batched {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let batch = {
            let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *batch)
        };
        let answers = batch.heads.chunks_exact(3).filter(|head| head[1] != kind::LOSS);
        let answered = u32::try_from(answers.count()).unwrap_or(0);
        if answered > 0 && self.in_flight.fetch_sub(answered, Ordering::AcqRel) == answered {
            // SAFETY: Node calls this on the JavaScript thread of a living environment, through this very function.
            unsafe {
                sys::napi_unref_threadsafe_function(
                    env.raw(),
                    self.function.load(Ordering::Acquire),
                )
            };
        }
        let leases = batch.leases.into_iter().map(NativeLease::new).collect();
        (Uint32Array::new(batch.heads), Buffer::from(batch.bytes), leases).into()
    }
}

/// The duty to answer one call exactly once: dropping it unanswered, by a panic say, answers with an error.
pub struct Answer {
    bridge: Arc<Bridge>,
    call: u32,
    given: bool,
}

impl Answer {
    /// Answers with what a lock call came to.
    pub fn locked(self, locked: Result<Option<Locked>, Error>) {
        self.give(locked.map(|locked| locked.map_or(Outcome::Nothing, Outcome::Locked)));
    }

    /// Answers with a document, or nothing.
    pub fn document(self, document: Result<Option<Document>, Error>) {
        self.give(document.map(|document| document.map_or(Outcome::Nothing, Outcome::Document)));
    }

    /// Answers with what a claim came to.
    pub fn claimed(self, claimed: Result<Vec<Locked>, Error>) {
        self.give(claimed.map(Outcome::Claimed));
    }

    /// Answers.
    pub fn give(mut self, result: Result<Outcome, Error>) {
        self.given = true;
        let (kind, encoded, leases) = match result {
            Ok(Outcome::Nothing) => (kind::NOTHING, Ok(Vec::new()), Vec::new()),
            Ok(Outcome::Document(document)) => (kind::DOCUMENT, document.to_vec(), Vec::new()),
            Ok(Outcome::Locked(Locked { document, lease })) => {
                (kind::LOCKED, document.to_vec(), vec![lease])
            }
            Ok(Outcome::Claimed(claimed)) => {
                let encoded = claimed.iter().try_fold(Vec::new(), |mut bytes, locked| {
                    locked.document.to_writer(&mut bytes).map(|()| bytes)
                });
                let leases = claimed.into_iter().map(|locked| locked.lease).collect();
                (kind::CLAIMED, encoded, leases)
            }
            Err(error) => (kind::FAILURE, error.report().to_vec(), Vec::new()),
        };
        match encoded {
            Ok(bytes) => self.bridge.push(self.call, kind, &bytes, leases),
            Err(_) => self.fail("a document could not be encoded"),
        }
    }

    fn fail(&self, reason: &'static str) {
        let bytes = Error::Internal(reason).report().to_vec().unwrap_or_default();
        self.bridge.push(self.call, kind::FAILURE, &bytes, []);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            self.fail("a native task ended without an answer");
        }
    }
}

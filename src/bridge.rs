//! Answers on their way to JavaScript: the only file that knows Node-API's threads.
//!
//! Native threads append to one batch; the first of a batch wakes the event loop, which takes all that has gathered in
//! one call. The threadsafe function is weak, so an idle addon does not keep the process alive; a call in flight does.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bson::Document;
use napi::Status;
use napi::bindgen_prelude::{
    Buffer, FnArgs, Function, ToNapiValue, TypeName, ValueType, check_status,
};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, sys};

use crate::client::NativeLease;
use crate::error::Error;
use crate::keeper::Pulse;
use crate::lease::{Lease, Moment};
use crate::store::Locked;

/// What JavaScript's function gets: the answers end to end, each with a head of three little-endian numbers of 32 bits (the
/// call, the kind, and how many bytes of BSON follow), and the leases of the answers `LOCKED` and `CLAIMED`, one for each
/// document, in order.
pub type Batched = FnArgs<(Bytes, Vec<NativeLease>)>;

type Wake = ThreadsafeFunction<(), (), Batched, Status, false, true>;

/// Bytes on their way to a `Buffer` of JavaScript's.
pub struct Bytes(Vec<u8>);

/// From here on a copy costs more than the finalizer and the bookkeeping of a `Buffer` whose memory is ours.
const LARGE: usize = 64 * 1024;

impl TypeName for Bytes {
    fn type_name() -> &'static str {
        "Buffer"
    }

    fn value_type() -> ValueType {
        ValueType::Object
    }
}

impl ToNapiValue for Bytes {
    unsafe fn to_napi_value(
        env: sys::napi_env,
        Self(bytes): Self,
    ) -> napi::Result<sys::napi_value> {
        if bytes.len() >= LARGE {
            // SAFETY: `env` is the caller's, of this very thread.
            return unsafe { Buffer::to_napi_value(env, Buffer::from(bytes)) };
        }
        let mut copy = ptr::null_mut();
        let (length, from) = (bytes.len(), bytes.as_ptr().cast());
        // SAFETY: `env` is the caller's, and `from` points to `length` bytes that outlive the call.
        let status = unsafe {
            sys::napi_create_buffer_copy(env, length, from, ptr::null_mut(), &raw mut copy)
        };
        check_status!(status)?;
        Ok(copy)
    }
}

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
    bytes: Vec<u8>,
    /// How many of them answer a call.
    answers: u32,
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
            let first = batch.bytes.is_empty();
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            for number in [call, kind, length] {
                batch.bytes.extend_from_slice(&number.to_le_bytes());
            }
            batch.bytes.extend_from_slice(bytes);
            batch.answers += u32::from(kind != kind::LOSS);
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
        let Batch { bytes, answers, leases } = batch;
        if answers > 0 && self.in_flight.fetch_sub(answers, Ordering::AcqRel) == answers {
            // SAFETY: Node calls this on the JavaScript thread of a living environment, through this very function.
            unsafe {
                sys::napi_unref_threadsafe_function(
                    env.raw(),
                    self.function.load(Ordering::Acquire),
                )
            };
        }
        let leases = leases.into_iter().map(NativeLease::new).collect();
        (Bytes(bytes), leases).into()
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

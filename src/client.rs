//! The classes that JavaScript calls: they map arguments, start work on the runtime and see to the answer.
//!
//! A method returns at once; its result comes over the bridge, under the number that JavaScript gave the call.

// napi hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bson::Bson;
use napi::bindgen_prelude::{Function, Uint8Array};
use napi::{Env, Error as NapiError, Result, Status};
use napi_derive::napi;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::bridge::{Answer, Batched, Bridge};
use crate::claim::Claim;
use crate::command::{Subject, Target};
use crate::error::Error;
use crate::keeper::Terms;
use crate::lease::{Lease, Moment, Standing};
use crate::options::ConnectionOptions;
use crate::patience::Patience;
use crate::runtime::runtime;
use crate::store::{Collection, Request, Store};

/// The way back to this environment's event loop.
#[napi]
pub struct NativeBridge {
    bridge: Arc<Bridge>,
    stores: Stores,
}

/// The clients of one environment. A client that nobody uses any more is gone from it by itself.
type Stores = Arc<Mutex<Vec<Weak<Store>>>>;

/// How long an environment that ends without an `exit` event (a worker that is terminated) waits for its releases.
const CLEANUP_LIMIT: Duration = Duration::from_secs(1);

#[napi]
impl NativeBridge {
    /// `on_answers(answers, leases)` gets the answers in batches.
    #[napi(
        constructor,
        ts_args_type = "onAnswers: (answers: Buffer, leases: NativeLease[]) => void"
    )]
    pub fn new(env: Env, on_answers: Function<'_, Batched, ()>) -> Result<Self> {
        let stores = Stores::default();
        env.add_env_cleanup_hook(Arc::clone(&stores), |stores| {
            release_kept(&stores, CLEANUP_LIMIT);
        })?;
        Ok(Self { bridge: Bridge::new(&on_answers)?, stores })
    }

    /// Whether this is an optimized build: the speed of another says nothing.
    #[napi]
    pub fn is_optimized() -> bool {
        !cfg!(debug_assertions)
    }

    /// Releases all locks of this environment that are being kept alive, and waits for it, at most so many milliseconds.
    #[napi]
    pub fn release_kept(&self, limit_ms: u32) {
        release_kept(&self.stores, Duration::from_millis(limit_ms.into()));
    }
}

fn release_kept(stores: &Stores, limit: Duration) {
    let stores: Vec<_> = {
        let mut stores = stores.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *stores).iter().filter_map(Weak::upgrade).collect()
    };
    let Ok(runtime) = runtime() else { return };
    for store in &stores {
        // Nobody is left who could use what they wait for.
        store.leave();
    }
    let releases = stores
        .into_iter()
        .map(|store| runtime.spawn(async move { store.release_kept(limit).await }))
        .collect::<Vec<_>>();
    // On the JavaScript thread, which is at its end: the event loop does not turn any more.
    runtime.block_on(async {
        for release in releases {
            let _ = release.await;
        }
    });
}

/// One native client, the counterpart of one `MongoClient` of Mongoose's.
#[napi]
pub struct NativeClient {
    bridge: Arc<Bridge>,
    store: Arc<Store>,
}

#[napi]
impl NativeClient {
    /// Makes a client of connection options, given as BSON; it connects in the background.
    #[napi(constructor)]
    pub fn new(bridge: &NativeBridge, options: &[u8]) -> Result<Self> {
        let options = ConnectionOptions::from_bson(options).map_err(thrown)?;
        let _inside = runtime().map_err(thrown)?.enter();
        let pulse = Arc::clone(&bridge.bridge);
        let store = Store::connect(options, pulse).map_err(thrown)?;
        let mut stores = bridge.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|store| store.strong_count() > 0);
        stores.push(Arc::downgrade(&store));
        Ok(Self { bridge: Arc::clone(&bridge.bridge), store })
    }

    /// The collection of a model, with the constant part of its commands, given as BSON.
    #[napi]
    pub fn collection(&self, database: String, target: &[u8]) -> Result<NativeCollection> {
        let target: Target = bson::deserialize_from_slice(target).map_err(|e| thrown(e.into()))?;
        let collection = Collection::new(Arc::clone(&self.store), &database, target);
        Ok(NativeCollection { bridge: Arc::clone(&self.bridge), collection })
    }

    /// Closes the client in the background.
    #[napi]
    pub fn close(&self) -> Result<()> {
        let store = Arc::clone(&self.store);
        runtime().map_err(thrown)?.spawn(async move { store.close().await });
        Ok(())
    }
}

/// One model's collection on one client.
///
/// `subject` is BSON: `{ key: { _id, ... }, set: { path: value, ... } }`.
#[napi]
pub struct NativeCollection {
    bridge: Arc<Bridge>,
    collection: Arc<Collection>,
}

#[napi]
impl NativeCollection {
    /// Locks, and keeps the lock alive on the terms if there are any; answers with the document and a lease, or with nothing.
    /// Waits so many milliseconds for a locked document (Infinity: for ever); without any it has a single try.
    #[napi]
    pub fn lock(
        &self,
        env: Env,
        call: u32,
        subject: &[u8],
        duration_ms: i64,
        terms: Option<NativeTerms>,
        wait_ms: Option<f64>,
    ) -> Result<Option<NativeWait>> {
        let terms = terms.map(|terms| terms.of(duration_ms));
        let request = move |subject| Request { subject, duration_ms, terms };
        let Some(wait_ms) = wait_ms else {
            self.start(env, call, subject, move |collection, subject, answer| async move {
                collection.lock(request(subject), |locked| answer.locked(locked)).await;
            })?;
            return Ok(None);
        };
        let (patience, cancel) = Patience::new(finite(wait_ms));
        // Read here, and not on the runtime: those who wait are served in the order of their calls.
        let subject: Subject =
            bson::deserialize_from_slice(subject).map_err(|error| thrown(error.into()))?;
        let place = self.collection.enter(&subject).map_err(thrown)?;
        let (runtime, collection) = (runtime().map_err(thrown)?, Arc::clone(&self.collection));
        let answer = self.bridge.begin(env, call);
        runtime.spawn(async move {
            let answer = |locked| answer.locked(locked);
            collection.lock_in_turn(request(subject), place, patience, answer).await;
        });
        Ok(Some(NativeWait { cancel }))
    }

    /// Claims up to `limit` documents of a query, given as BSON: `{ filter, sort, collation, set }`; answers with the documents
    /// and a lease for each. Waits so many milliseconds for the first of them.
    #[napi]
    #[allow(clippy::too_many_arguments)]
    pub fn claim(
        &self,
        env: Env,
        call: u32,
        query: &[u8],
        duration_ms: i64,
        limit: u32,
        terms: Option<NativeTerms>,
        wait_ms: Option<f64>,
    ) -> Result<Option<NativeWait>> {
        let terms = terms.map(|terms| terms.of(duration_ms));
        let (patience, wait) = patience(wait_ms);
        self.start(env, call, query, move |collection, query, answer| async move {
            let claim = Claim { query, limit: limit as usize, duration_ms, terms };
            collection.claim(claim, patience, |claimed| answer.claimed(claimed)).await;
        })?;
        Ok(wait)
    }

    /// Releases what the lease holds, or whatever lock there is without one; answers with the document, or nothing. A brief
    /// answer has next to nothing of the document.
    #[napi]
    pub fn release(
        &self,
        env: Env,
        call: u32,
        subject: &[u8],
        lease: Option<&NativeLease>,
        brief: Option<bool>,
    ) -> Result<()> {
        let brief = brief.unwrap_or(false);
        let lease = lease.map(|lease| Arc::clone(&lease.lease));
        if let Some(lease) = &lease {
            // From here on the server may let others in: not held, before the answer comes.
            lease.set_standing(Standing::Releasing);
        }
        self.start(env, call, subject, move |collection, subject, answer| async move {
            let answer = |document| answer.document(document);
            match lease {
                Some(lease) => collection.release(subject, lease, brief, answer).await,
                None => collection.release_any(subject, answer).await,
            }
        })
    }

    /// Prolongs what the lease holds; answers with the document, or nothing.
    #[napi]
    pub fn extend(
        &self,
        env: Env,
        call: u32,
        subject: &[u8],
        lease: &NativeLease,
        duration_ms: i64,
    ) -> Result<()> {
        let lease = Arc::clone(&lease.lease);
        self.start(env, call, subject, move |collection, subject, answer| async move {
            let answer = |document| answer.document(document);
            collection.extend(subject, lease, duration_ms, answer).await;
        })
    }

    /// Asks the primary whether the lease is still the last; answers with `{ mine }`, or nothing.
    #[napi]
    pub fn inspect(&self, env: Env, call: u32, subject: &[u8], lease: &NativeLease) -> Result<()> {
        let lease = Arc::clone(&lease.lease);
        self.start(env, call, subject, move |collection, subject, answer| async move {
            collection.inspect(subject, lease, |found| answer.document(found)).await;
        })
    }
}

impl NativeCollection {
    /// Starts a call. Even its subject is read on the runtime: the event loop has enough to do.
    fn start<S: DeserializeOwned + Send, F: Future<Output = ()> + Send>(
        &self,
        env: Env,
        call: u32,
        subject: &[u8],
        work: impl FnOnce(Arc<Collection>, S, Answer) -> F + Send + 'static,
    ) -> Result<()> {
        let runtime = runtime().map_err(thrown)?;
        let (subject, collection) = (subject.to_vec(), Arc::clone(&self.collection));
        let answer = self.bridge.begin(env, call);
        runtime.spawn(async move {
            match bson::deserialize_from_slice(&subject) {
                Ok(subject) => work(collection, subject, answer).await,
                Err(error) => answer.give(Err(Error::Bson(error))),
            }
        });
        Ok(())
    }
}

/// A call that waits for a locked document.
#[napi]
pub struct NativeWait {
    cancel: watch::Sender<bool>,
}

#[napi]
impl NativeWait {
    /// Ends the waiting: the call is answered with nothing, and a lock that it wins all the same is released. It may have
    /// been answered before.
    #[napi]
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }
}

/// How long a lock is to be kept alive.
#[napi(object)]
pub struct NativeTerms {
    /// Milliseconds since it was acquired; Infinity for ever.
    pub max_hold: f64,
    /// Milliseconds for which the event loop has not turned; Infinity for ever.
    pub max_stall: f64,
}

impl NativeTerms {
    fn of(&self, duration_ms: i64) -> Terms {
        Terms {
            duration_ms,
            max_hold: milliseconds(self.max_hold),
            max_stall: milliseconds(self.max_stall),
        }
    }
}

/// The patience of a call, and what ends it.
fn patience(wait_ms: Option<f64>) -> (Option<Patience>, Option<NativeWait>) {
    let begin = |ms| {
        let (patience, cancel) = Patience::new(finite(ms));
        (patience, NativeWait { cancel })
    };
    wait_ms.map(begin).unzip()
}

/// One acquisition, as this process believes it to stand. When it is collected, the lock is not kept alive any more.
#[napi]
pub struct NativeLease {
    lease: Arc<Lease>,
}

impl Drop for NativeLease {
    fn drop(&mut self) {
        self.lease.abandon();
    }
}

#[napi]
impl NativeLease {
    /// Says that whoever asked for the lock has it. That it was put into a batch does not: a thread that is being terminated
    /// gets batches that it never reads.
    #[napi]
    pub fn take(&self) {
        self.lease.take();
    }

    /// How many milliseconds the lock is held from now on, at least; 0 when it is not held.
    #[napi(getter)]
    pub fn remaining(&self) -> f64 {
        self.lease.remaining(Moment::now()).as_secs_f64() * 1000.0
    }

    /// Whether a release of ours has been confirmed.
    #[napi(getter)]
    pub fn released(&self) -> bool {
        self.lease.standing() == Standing::Released
    }

    /// Whether a release of ours was sent: what becomes of it then is no loss.
    #[napi(getter)]
    pub fn let_go(&self) -> bool {
        matches!(self.lease.standing(), Standing::Releasing | Standing::Released)
    }

    /// Why the lock is lost, or will be when its deadline passes.
    #[napi(getter)]
    pub fn reason(&self) -> &'static str {
        self.lease.reason().name()
    }

    /// Has the bridge tell a loss, under this number, as soon as the server says that the lock is lost.
    #[napi]
    pub fn watch(&self, bridge: &NativeBridge, number: u32) {
        let bridge = Arc::downgrade(&bridge.bridge);
        self.lease.watch(move || {
            if let Some(bridge) = bridge.upgrade() {
                bridge.tell_loss(number);
            }
        });
    }

    /// The fencing token.
    #[napi(getter)]
    pub fn token(&self) -> f64 {
        self.lease.hold().token.as_ref().map_or(0.0, number)
    }

    /// When it was acquired: milliseconds since 1970, by the server's clock.
    #[napi(getter)]
    pub fn since(&self) -> i64 {
        self.lease.since().timestamp_millis()
    }

    /// When it ends: milliseconds since 1970, by the server's clock, as it was last told.
    #[napi(getter)]
    pub fn until(&self) -> i64 {
        self.lease.until().timestamp_millis()
    }

    /// The twelve bytes of the `ObjectId` that is stored with the lock.
    #[napi(getter)]
    pub fn id(&self) -> Uint8Array {
        Uint8Array::new(self.lease.hold().lease.bytes().to_vec())
    }
}

impl NativeLease {
    /// Wraps a lease for JavaScript.
    pub fn new(lease: Arc<Lease>) -> Self {
        Self { lease }
    }
}

/// A number as JavaScript has it.
#[allow(clippy::cast_precision_loss, reason = "JavaScript's numbers are no more precise")]
fn number(value: &Bson) -> f64 {
    match value {
        Bson::Int32(number) => f64::from(*number),
        Bson::Int64(number) => *number as f64,
        Bson::Double(number) => *number,
        // A Decimal128 that somebody else has stored.
        other => other.to_string().parse().unwrap_or(f64::NAN),
    }
}

/// A duration that may be infinite.
fn milliseconds(ms: f64) -> Duration {
    finite(ms).unwrap_or(Duration::MAX)
}

/// A duration, or `None` if it has no end.
fn finite(ms: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(ms / 1000.0).ok()
}

/// An error of a synchronous call; JavaScript has checked what users give, so these are configuration or defects.
fn thrown(error: Error) -> NapiError {
    NapiError::new(Status::GenericFailure, error.to_string())
}

//! Sends the commands of `command.rs`, sends them again when that may help, and sorts out what the answers mean.
//!
//! Each call answers its caller once: with a result, or with an error when its time is up. A future of the driver is
//! never dropped half-way; one that outlives its caller runs to its end, and what it won late is released.
//! Nothing here knows Node.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, doc, oid::ObjectId};
use mongodb::{Client, Database};
use tokio::sync::{RwLock, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::call::{Call, FIRST_PAUSE, GRACE, LONGEST_PAUSE, Reply, Replying};
use crate::chance::jittered;
use crate::claim::{self, Claim, Crowd};
use crate::command::{Hold, Subject, Target};
use crate::error::Error;
use crate::keeper::{Keeper, Pulse, Terms};
use crate::lease::{Lease, Moment, Reason, Standing};
use crate::options::ConnectionOptions;
use crate::patience::Patience;
use crate::waiter::{self, Listener, Lobby, Place};

/// A little less than the connections of the keepers' client.
const PLACES: usize = 4;

/// From here on a document costs more to send in vain than a plan of the server's does. In bytes.
const BULKY: usize = 16 * 1024;

/// Database, collection and path of the lock, and whether new documents are waited for too.
type LobbyName = ([String; 3], bool);

/// One native client, the counterpart of one `MongoClient` of Mongoose's.
pub struct Store {
    client: Client,
    limit: Duration,
    closing: watch::Sender<bool>,
    /// Read by every call while it runs, so that closing can wait for them.
    running: RwLock<()>,
    options: ConnectionOptions,
    pulse: Arc<dyn Pulse>,
    /// The small client of the keepers, made with the first.
    aside: OnceLock<Result<Client, Error>>,
    keepers: Mutex<Vec<Arc<Keeper>>>,
    /// How many commands of the keepers may be on their way at once.
    places: Arc<Semaphore>,
    /// Where is waited for the documents of a collection.
    lobbies: Mutex<HashMap<LobbyName, Arc<Lobby>>>,
    /// Nobody is to wait any more.
    ended: watch::Sender<bool>,
    /// The environment takes no answers any more.
    left: watch::Sender<bool>,
}

impl Store {
    /// Makes a client of the options; it connects in the background. `pulse` is the event loop of those who call.
    pub fn connect(options: ConnectionOptions, pulse: Arc<dyn Pulse>) -> Result<Arc<Self>, Error> {
        let limit = options.limit();
        let client = options.clone().connect()?;
        let (closing, _) = watch::channel(false);
        Ok(Arc::new(Self {
            client,
            limit,
            closing,
            running: RwLock::new(()),
            options,
            pulse,
            aside: OnceLock::new(),
            keepers: Mutex::default(),
            places: Arc::new(Semaphore::new(PLACES)),
            lobbies: Mutex::default(),
            ended: watch::channel(false).0,
            left: watch::channel(false).0,
        }))
    }

    /// Releases all locks that are being kept alive, in at most `limit`.
    pub async fn release_kept(&self, limit: Duration) {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let releases: Vec<_> = keepers
            .into_iter()
            .map(|keeper| tokio::spawn(async move { keeper.release_all().await }))
            .collect();
        let _ = timeout(limit, async {
            for release in releases {
                let _ = release.await;
            }
        })
        .await;
    }

    /// Begins to count the time of a call.
    fn begin(&self) -> Call {
        Call::begin(self.limit, self.closing.subscribe())
    }

    fn keeper(&self, database: &str, target: &Target) -> Result<Arc<Keeper>, Error> {
        let database = self.aside(database)?;
        let (pulse, places) = (Arc::clone(&self.pulse), Arc::clone(&self.places));
        let keeper = Keeper::new(database, target.clone(), pulse, places);
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&keeper));
        Ok(keeper)
    }

    /// The database, by the small client.
    fn aside(&self, database: &str) -> Result<Database, Error> {
        let aside = self.aside.get_or_init(|| self.options.clone().aside().connect());
        Ok(aside.as_ref().map_err(Clone::clone)?.database(database))
    }

    fn lobby(&self, database: &str, target: &Target, inserted: bool) -> Arc<Lobby> {
        let name = [database.to_owned(), target.collection.clone(), target.locked.clone()];
        let mut lobbies = self.lobbies.lock().unwrap_or_else(PoisonError::into_inner);
        let lobby = lobbies.entry((name, inserted));
        Arc::clone(lobby.or_insert_with(|| Lobby::new(target, inserted)))
    }

    /// Ends all waiting: the environment is at its end, and takes no answers any more. On its own thread, so that each of
    /// them has been taken by now or never will be.
    pub fn leave(&self) {
        self.left.send_replace(true);
        self.end_waits();
    }

    /// Answers all who wait for a lock with an error; those who come later try once.
    fn end_waits(&self) {
        self.ended.send_replace(true);
    }

    /// Closes the client. Locks that are being kept are released first; calls in flight have a second to end by
    /// themselves, then they are answered with an error.
    pub async fn close(&self) {
        if self.closing.send_replace(true) {
            return;
        }
        self.end_waits();
        self.release_kept(GRACE).await;
        let _ = timeout(GRACE, self.running.write()).await;
        self.client.clone().shutdown().immediate(true).await;
        if let Some(Ok(aside)) = self.aside.get() {
            aside.clone().shutdown().immediate(true).await;
        }
    }
}

/// A document that this process has locked.
#[derive(Debug)]
pub struct Locked {
    /// The document, as it is with the lock.
    pub document: Document,
    /// The acquisition.
    pub lease: Arc<Lease>,
}

/// Why a lock call failed, and the lease that it may have left behind.
pub struct Failed {
    /// What went wrong.
    pub error: Error,
    /// Of a lock that nobody has asked for any more.
    pub leftover: Option<ObjectId>,
}

/// What one lock call asks for.
pub struct Request {
    /// Which document.
    pub subject: Subject,
    /// For how long.
    pub duration_ms: i64,
    /// Whether, and on which terms, the lock is kept alive.
    pub terms: Option<Terms>,
}

/// What an attempt to lock came to.
pub enum Tried {
    /// The document is locked, or gone; nothing was replied.
    Refused,
    /// It is locked, and kept alive if it is to be; nothing was replied.
    Won(Locked),
    /// Replied with something else.
    Ended,
}

/// One model's collection on one client.
pub struct Collection {
    store: Arc<Store>,
    database: Database,
    target: Target,
    keeper: OnceLock<Result<Arc<Keeper>, Error>>,
    lobby: Arc<Lobby>,
    crowd: Crowd,
    /// Whether one of its documents was too large to come back in vain.
    is_bulky: AtomicBool,
}

impl Collection {
    /// The collection that `target` names in a database.
    pub fn new(store: Arc<Store>, database: &str, target: Target) -> Arc<Self> {
        let lobby = store.lobby(database, &target, false);
        let database = store.client.database(database);
        let (keeper, crowd) = (OnceLock::new(), Crowd::default());
        let is_bulky = AtomicBool::new(false);
        Arc::new(Self { store, database, target, keeper, lobby, crowd, is_bulky })
    }

    /// Tries to lock a document, and keeps the lock alive if there are terms for that. Answers with `None` when it is locked
    /// already, or gone.
    pub async fn lock(&self, request: Request, answer: impl Replying<Option<Locked>>) {
        let _running = self.store.running.read().await;
        let mut reply = Reply::new(answer);
        match self.try_once(&request, pending(), &mut reply).await {
            Tried::Refused => reply.give(Ok(None)),
            // Unlike one that is kept alive, it is to outlive whoever asked for it.
            Tried::Won(locked) if request.terms.is_none() => reply.give(Ok(Some(locked))),
            Tried::Won(locked) => self.hand_out(&request, locked, &mut reply).await,
            Tried::Ended => {}
        }
    }

    /// The same for one who has taken a place among those who wait. Answers with `None` when the document is gone, or was
    /// not released while the caller had patience.
    pub async fn lock_in_turn(
        &self,
        request: Request,
        place: Place,
        patience: Patience,
        answer: impl Replying<Option<Locked>>,
    ) {
        let _running = self.store.running.read().await;
        waiter::wait(self, place, &request, &patience, &mut Reply::new(answer)).await;
    }

    /// Locks up to `limit` documents of a query, as [`Collection::lock`] does one. Answers with none when there are none,
    /// and none came while the caller had patience.
    pub async fn claim(
        &self,
        claim: Claim,
        patience: Option<Patience>,
        answer: impl Replying<Vec<Locked>>,
    ) {
        let _running = self.store.running.read().await;
        claim::claim(self, &claim, patience.as_ref(), Reply::new(answer)).await;
    }

    /// Listens for documents that may be claimed now.
    pub fn listen(&self) -> Result<Listener, Error> {
        let database = self.store.aside(self.database.name())?;
        let lobby = self.store.lobby(self.database.name(), &self.target, true);
        lobby.listen(&database).ok_or(Error::Closed)
    }

    /// The constant part of the commands.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// How much company the claims have.
    pub fn crowd(&self) -> &Crowd {
        &self.crowd
    }

    /// Begins to count the time of a call.
    pub fn begin(&self) -> Call {
        self.store.begin()
    }

    /// Keeps locks alive on these terms, if there are any; not if nobody is left who could want them.
    pub fn keep(&self, locked: &[Locked], terms: Option<Terms>) -> Result<(), Error> {
        let Some(terms) = terms else { return Ok(()) };
        let keeper = self.keeper()?;
        for Locked { document, lease } in locked {
            let id = document.get("_id").cloned().unwrap_or(Bson::Null);
            keeper.keep(doc! { "_id": id }, Arc::clone(lease), terms);
        }
        // Looked at afterwards: what is kept by then is released by whoever sets it.
        if *self.store.ended.borrow() {
            for Locked { lease, .. } in locked {
                lease.set_standing(Standing::Releasing);
            }
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// Joins those who wait for a document.
    pub fn enter(&self, subject: &Subject) -> Result<Place, Error> {
        self.lobby.enter(subject.id()).ok_or(Error::Closed)
    }

    /// Sees to it that news of a document come in, by the small client.
    pub fn attend(&self, lobby: &Lobby, key: &[u8]) -> Result<(), Error> {
        lobby.attend(key, &self.store.aside(self.database.name())?);
        Ok(())
    }

    /// Replies with a lock that was waited for, or that is kept alive. If the environment comes to its end before it has
    /// taken the answer, it is released.
    pub async fn hand_out<A: Replying<Option<Locked>>>(
        &self,
        request: &Request,
        locked: Locked,
        reply: &mut Reply<Option<Locked>, A>,
    ) {
        let lease = Arc::clone(&locked.lease);
        if *self.store.ended.borrow() {
            reply.give(Err(Error::Closed));
        } else {
            reply.give(Ok(Some(locked)));
            let mut left = self.store.left.subscribe();
            tokio::select! {
                () = lease.taken() => return,
                // The sender lives as long as the store, so this ends with a change only.
                _ = left.wait_for(|left| *left) => {}
            }
            if lease.is_taken() {
                return;
            }
        }
        lease.set_standing(Standing::Releasing);
        self.release_in_background(&request.subject, lease.hold().lease, request.duration_ms).await;
    }

    /// Ends when the caller has waited for long enough, or nobody is to wait any more.
    pub async fn over<T: Default>(&self, patience: &Patience) -> Result<T, Error> {
        let mut ended = self.store.ended.subscribe();
        tokio::select! {
            () = patience.over() => Ok(T::default()),
            // The sender lives as long as the store, so this ends with a change only.
            _ = ended.wait_for(|ended| *ended) => Err(Error::Closed),
        }
    }

    /// Tries once to lock a document. Replies when that fails, or with what `cut` comes to, or that the time is up, if that
    /// comes first; what is won after that is released.
    pub async fn try_once<A: Replying<Option<Locked>>>(
        &self,
        request: &Request,
        cut: impl Future<Output = Result<Option<Locked>, Error>> + Send,
        reply: &mut Reply<Option<Locked>, A>,
    ) -> Tried {
        let Request { subject, duration_ms, terms } = request;
        let keeping = match terms.map(|terms| self.keeper().map(|keeper| (keeper, terms))) {
            Some(Err(error)) => {
                reply.give(Err(error));
                return Tried::Ended;
            }
            Some(Ok(keeping)) => Some(keeping),
            None => None,
        };
        let call = self.store.begin();
        let attempt = self.acquire(subject, *duration_ms, &call);
        let leftover = match call.to_its_end(attempt, cut, reply).await {
            (Ok(None), true) => return Tried::Refused,
            (Ok(Some(locked)), true) => {
                if let Some((keeper, terms)) = keeping {
                    keeper.keep(subject.key.clone(), Arc::clone(&locked.lease), terms);
                }
                return Tried::Won(locked);
            }
            (Err(Failed { error, leftover }), true) => {
                reply.give(Err(error));
                leftover
            }
            (Ok(locked), false) => locked.map(|locked| locked.lease.hold().lease),
            (Err(Failed { leftover, .. }), false) => leftover,
        };
        if let Some(lease) = leftover {
            self.release_in_background(subject, lease, *duration_ms).await;
        }
        Tried::Ended
    }

    /// Looks for how long a document is locked, at the most; `None` when it is gone. Replies, and gives nothing, when that
    /// fails, or what `cut` comes to if that comes first.
    pub async fn look<A: Replying<Option<Locked>>>(
        &self,
        subject: &Subject,
        cut: impl Future<Output = Result<Option<Locked>, Error>> + Send,
        reply: &mut Reply<Option<Locked>, A>,
    ) -> Option<Option<Duration>> {
        let call = self.store.begin();
        let work = self.read(|ms| self.target.look(subject, ms), &call);
        match call.to_its_end(work, cut, reply).await {
            (Ok(found), true) => Some(found.map(|found| {
                let left = found.get_i64("left").unwrap_or_default();
                Duration::from_millis(u64::try_from(left).unwrap_or_default())
            })),
            (Err(error), true) => {
                reply.give(Err(error));
                None
            }
            (_, false) => None,
        }
    }

    /// Releases the lock that `lease` holds. Answers with `None` when it was lost, and otherwise, if it is to be `brief`, with
    /// next to nothing of the document.
    pub async fn release(
        &self,
        subject: Subject,
        lease: Arc<Lease>,
        brief: bool,
        answer: impl FnOnce(Result<Option<Document>, Error>) + Send,
    ) {
        let call = self.store.begin();
        let work = async {
            let _turn = lease.turn().await;
            let released = self.release_held(&subject, &lease, brief, &call).await?;
            match &released {
                Some(document) => self.lobby.hand_over(subject.id(), document),
                None => lease.lose(Reason::TakenOver),
            }
            Ok(released)
        };
        // Released is what the caller was told is released: one that was answered with an error stays fenced, even if it
        // is applied late.
        let answer = |released: Result<Option<Document>, Error>| {
            if matches!(released, Ok(Some(_))) {
                lease.set_standing(Standing::Released);
            }
            answer(released);
        };
        self.answer_in_time(&call, work, answer).await;
    }

    /// Releases the lock whoever holds it. Answers with `None` when the document is gone.
    pub async fn release_any(
        &self,
        subject: Subject,
        answer: impl FnOnce(Result<Option<Document>, Error>) + Send,
    ) {
        let call = self.store.begin();
        let work = async {
            let released = self.release_state(&subject, &call).await?;
            if let Some(document) = &released {
                self.lobby.hand_over(subject.id(), document);
            }
            Ok(released)
        };
        self.answer_in_time(&call, work, answer).await;
    }

    /// Prolongs the lock that `lease` holds. Answers with `None` when it is not held any more.
    pub async fn extend(
        &self,
        subject: Subject,
        lease: Arc<Lease>,
        duration_ms: i64,
        answer: impl FnOnce(Result<Option<Document>, Error>) + Send,
    ) {
        let call = self.store.begin();
        let work = async {
            let _turn = lease.turn().await;
            if lease.standing() != Standing::Held {
                return Ok(None);
            }
            let sent = Moment::now();
            let mut extended = self
                .send_until_answered(&call, |ms| {
                    self.target.extend(&subject, lease.hold(), duration_ms, ms)
                })
                .await?
                .0;
            match &mut extended {
                Some(document) => {
                    lease.prolong(sent.deadline(duration_ms));
                    lease.set_until(self.target.take_record(document).until);
                }
                None if Moment::now() >= lease.deadline() => lease.lose(Reason::Expired),
                None => lease.lose(Reason::TakenOver),
            }
            Ok(extended)
        };
        self.answer_in_time(&call, work, answer).await;
    }

    /// Tells whether `lease` was the last to take the lock, as `{ mine }`. Answers with `None` when the document is gone.
    pub async fn inspect(
        &self,
        subject: Subject,
        lease: Arc<Lease>,
        answer: impl FnOnce(Result<Option<Document>, Error>) + Send,
    ) {
        let call = self.store.begin();
        let work =
            async { self.read(|ms| self.target.inspect(&subject, lease.hold(), ms), &call).await };
        self.answer_in_time(&call, work, answer).await;
    }

    fn keeper(&self) -> Result<Arc<Keeper>, Error> {
        let make = || self.store.keeper(self.database.name(), &self.target);
        self.keeper.get_or_init(make).clone()
    }

    /// Tries to lock one document until there is an answer.
    pub async fn acquire(
        &self,
        subject: &Subject,
        duration_ms: i64,
        call: &Call,
    ) -> Result<Option<Locked>, Failed> {
        let mut lease = ObjectId::new();
        // Counted from before the first attempt with this lease: any of them may be the one that was applied.
        let mut sent = Moment::now();
        let (mut in_doubt, mut afresh, mut late) = (false, false, false);
        let mut by_id = self.goes_by_id(subject);
        loop {
            let ms = call.milliseconds_left();
            let locked = if std::mem::take(&mut by_id) {
                self.lock_by_id(subject, lease, duration_ms, ms).await
            } else {
                self.send(&self.target.lock(subject, lease, duration_ms, ms)).await
            };
            match locked {
                Err(error) => {
                    in_doubt |= error.is_ambiguous();
                    let leftover = in_doubt.then_some(lease);
                    call.pause_after(error).await.map_err(|error| Failed { error, leftover })?;
                }
                Ok(Some(mut document)) => {
                    if late || duration_ms == 0 || Moment::now() < sent.plus_ms(duration_ms) {
                        let record = self.target.take_record(&mut document);
                        let lease = Arc::new(Lease::granted(lease, record, sent, duration_ms));
                        return Ok(Some(Locked { document, lease }));
                    }
                    // The answer is older than the lock, as when the command waited behind a transaction: a lock
                    // that is over is of no use. Ask once more; if we still hold it, that prolongs it.
                    (late, in_doubt, sent) = (true, true, Moment::now());
                }
                // An earlier attempt may have been applied and have lapsed since: the lease is used up, but the
                // document may be free.
                Ok(None) if in_doubt && !afresh => {
                    (lease, sent) = (ObjectId::new(), Moment::now());
                    (in_doubt, afresh) = (false, true);
                }
                Ok(None) => return Ok(None),
            }
        }
    }

    /// Whether the first attempt of a call on the document goes by its `_id` alone.
    fn goes_by_id(&self, subject: &Subject) -> bool {
        self.target.goes_by_id(subject) && !self.is_bulky.load(Ordering::Relaxed)
    }

    async fn lock_by_id(
        &self,
        subject: &Subject,
        lease: ObjectId,
        duration_ms: i64,
        ms: i64,
    ) -> Result<Option<Document>, Error> {
        let found = self.send(&self.target.lock_by_id(subject, lease, duration_ms, ms)).await?;
        Ok(found.and_then(|document| {
            let is_mine = self.target.is_locked_by(&document, lease);
            self.if_not_refused(document, is_mine)
        }))
    }

    async fn release_by_id(
        &self,
        subject: &Subject,
        hold: &Hold,
        brief: bool,
        ms: i64,
    ) -> Result<Option<Document>, Error> {
        let found = self.send(&self.target.release_by_id(subject, hold, brief, ms)).await?;
        Ok(found.and_then(|document| {
            let is_mine = self.target.is_released_by(&document, hold);
            let mut released = self.if_not_refused(document, is_mine)?;
            // Nobody needs the holder's record of what is released.
            self.target.take_record(&mut released);
            Some(released)
        }))
    }

    /// The document, unless it came back because the command was refused. One that is large costs more than is gained:
    /// those of this collection are asked for by a filter from now on.
    fn if_not_refused(&self, document: Document, is_mine: bool) -> Option<Document> {
        if is_mine {
            return Some(document);
        }
        if document.to_vec().is_ok_and(|bytes| bytes.len() > BULKY) {
            self.is_bulky.store(true, Ordering::Relaxed);
        }
        None
    }

    async fn release_held(
        &self,
        subject: &Subject,
        lease: &Lease,
        brief: bool,
        call: &Call,
    ) -> Result<Option<Document>, Error> {
        let mut in_doubt = false;
        if self.goes_by_id(subject) {
            match self.release_by_id(subject, lease.hold(), brief, call.milliseconds_left()).await {
                Ok(released) => return Ok(released),
                Err(error) => call.pause_after(error).await?,
            }
            in_doubt = true;
        }
        let command = |ms| self.target.release(subject, lease.hold(), brief, ms);
        let (released, again) = self.send_until_answered(call, command).await?;
        in_doubt |= again;
        if released.is_some() || !in_doubt || Moment::now() >= lease.deadline() {
            return Ok(released);
        }
        // The lease is gone before its time: an earlier attempt has released it, and another has the lock now. If
        // the date was written by somebody who knows nothing of leases, nobody can tell.
        match self.read_state(subject, call).await? {
            Some(document) if self.target.is_untouched(&document) => {
                self.read_document(subject, call).await
            }
            _ => Ok(None),
        }
    }

    async fn release_state(
        &self,
        subject: &Subject,
        call: &Call,
    ) -> Result<Option<Document>, Error> {
        loop {
            let Some(document) = self.read_state(subject, call).await? else {
                return Ok(None);
            };
            let state = self.target.state(&document);
            let command = |ms| self.target.release_state(subject, &state, ms);
            let (released, in_doubt) = self.send_until_answered(call, command).await?;
            if released.is_some() {
                return Ok(released);
            }
            if in_doubt {
                // What we read is gone, and it may have been us: whoever has the lock now got it afterwards.
                return self.read_document(subject, call).await;
            }
            // Somebody was faster between the two: look again, unless the time is up.
            if call.is_late() {
                return Err(call.time_out());
            }
        }
    }

    /// Releases a lease that nobody waits for any more, until it would have lapsed by itself.
    async fn release_in_background(&self, subject: &Subject, lease: ObjectId, duration_ms: i64) {
        // Whatever has this lease by now is nobody's.
        let (subject, hold) = (Subject::of(subject.key.clone()), Hold { lease, token: None });
        self.send_in_background(duration_ms, |ms| self.target.release(&subject, &hold, true, ms))
            .await;
    }

    /// Sends a command that nobody waits for, until it is answered, or would be of no use any more.
    pub async fn send_in_background(&self, duration_ms: i64, command: impl Fn(i64) -> Document) {
        let lapsed = Moment::now().plus_ms(duration_ms);
        let mut pause = FIRST_PAUSE;
        loop {
            let ms = i64::try_from(LONGEST_PAUSE.as_millis()).unwrap_or(i64::MAX);
            // Even while the client is being closed: for a second it can still be reached.
            match run(&self.database, &command(ms)).await {
                Err(error) if error.is_ambiguous() || error.is_server_selection() => {}
                _ => return,
            }
            if Moment::now() >= lapsed || *self.store.closing.borrow() {
                return;
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Sends until there is an answer; tells too whether an earlier attempt may have been applied.
    async fn send_until_answered(
        &self,
        call: &Call,
        command: impl Fn(i64) -> Document,
    ) -> Result<(Option<Document>, bool), Error> {
        let mut in_doubt = false;
        loop {
            match self.send(&command(call.milliseconds_left())).await {
                Ok(document) => return Ok((document, in_doubt)),
                Err(error) => {
                    call.pause_after(error).await?;
                    in_doubt = true;
                }
            }
        }
    }

    /// The lock's state in the document.
    async fn read_state(&self, subject: &Subject, call: &Call) -> Result<Option<Document>, Error> {
        let fields = self.target.state_fields();
        self.read(|ms| self.target.find(subject, &fields, ms), call).await
    }

    /// The document as it is handed back.
    async fn read_document(
        &self,
        subject: &Subject,
        call: &Call,
    ) -> Result<Option<Document>, Error> {
        self.read(|ms| self.target.find(subject, &self.target.fields, ms), call).await
    }

    /// Finds one document on the primary.
    async fn read(
        &self,
        command: impl Fn(i64) -> Document,
        call: &Call,
    ) -> Result<Option<Document>, Error> {
        loop {
            match self.run(&command(call.milliseconds_left())).await {
                Ok(mut reply) => {
                    let batch = match reply.get_document_mut("cursor") {
                        Ok(cursor) => cursor.get_array_mut("firstBatch").map(std::mem::take),
                        Err(error) => Err(error),
                    };
                    let first = batch.unwrap_or_default().into_iter().next();
                    return Ok(first.and_then(|document| match document {
                        Bson::Document(document) => Some(document),
                        _ => None,
                    }));
                }
                Err(error) => call.pause_after(error).await?,
            }
        }
    }

    /// One findAndModify: the document as it is afterwards, or `None` when none matched.
    async fn send(&self, command: &Document) -> Result<Option<Document>, Error> {
        Ok(match self.run(command).await?.remove("value") {
            Some(Bson::Document(document)) => Some(document),
            _ => None,
        })
    }

    /// Finds documents on the primary, in as many batches as they take.
    pub async fn find(&self, command: Document) -> Result<Vec<Document>, Error> {
        let mut cursor = self.database.run_cursor_command(command).await?;
        let mut found = Vec::new();
        while cursor.advance().await? {
            found.push(cursor.deserialize_current()?);
        }
        Ok(found)
    }

    /// Sends a command, unless the client is being closed.
    pub async fn run(&self, command: &Document) -> Result<Document, Error> {
        if *self.store.closing.borrow() {
            return Err(Error::Closed);
        }
        run(&self.database, command).await
    }

    /// Runs `work` and answers with what it comes to, or with an error when the time is up; `work` always ends.
    async fn answer_in_time<T>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T, Error>>,
        answer: impl FnOnce(Result<T, Error>),
    ) {
        let _running = self.store.running.read().await;
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => answer(result),
            error = call.cut_short() => {
                answer(Err(error));
                let _ = work.await;
            }
        }
    }
}

/// Runs a command. A write that was applied but not acknowledged, or that failed in part, is an error here; the driver
/// takes both for a success.
pub async fn run(database: &Database, command: &Document) -> Result<Document, Error> {
    let reply = database.run_raw_command(RawDocumentBuf::try_from(command)?).await?;
    let write_error = reply.get_array("writeErrors").ok().and_then(|errors| errors.first());
    let failure =
        write_error.or_else(|| reply.get("writeConcernError")).and_then(Bson::as_document);
    let Some(failure) = failure else { return Ok(reply) };
    let code = failure.get_i32("code").unwrap_or_default();
    let code_name = failure.get_str("codeName").unwrap_or_default().to_owned();
    let message = failure.get_str("errmsg").unwrap_or("the write failed").to_owned();
    let labels = reply.get_array("errorLabels").map(|labels| {
        labels.iter().filter_map(|label| label.as_str().map(str::to_owned)).collect()
    });
    let labels = labels.unwrap_or_else(|_| BTreeSet::new());
    Err(match write_error {
        Some(_) => Error::Write { code, code_name, message, labels },
        None => Error::WriteConcern { code, code_name, message, labels },
    })
}

//! Waits for locked documents: wakes when one is released, else when its lock is known to expire.
//!
//! A [`Lobby`] is where this process waits for the documents of one collection. Whoever waits for the same document queues
//! up, and the first of a queue alone talks to the server. While anybody waits, one change stream tells of releases; a
//! poll, one command for all documents, is the safety net under it and does its work where there is none.

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use mongodb::Database;
use mongodb::change_stream::ChangeStream;
use tokio::sync::{MutexGuard as Turn, Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::command::{Target, Watched};
use crate::error::Error;
use crate::store::{Collection, Locked, Reply, Replying, Request, Tried, jittered, run};

/// The shortest pause between two polls; the longest is the user's to choose.
const SHORTEST_POLL: Duration = Duration::from_millis(10);
/// Where a change stream tells of releases, the poll is a safety net.
const SAFETY_POLL: Duration = Duration::from_secs(5);
/// The most documents in one poll's command.
const BATCH: usize = 1000;
/// A stream that nobody needs is kept for so long: the next may come at once.
const LINGER: Duration = Duration::from_secs(1);
/// Between two attempts to open a stream that failed.
const REOPEN: Duration = Duration::from_millis(200);
/// Where the server refuses streams (no replica set, no permission) it is asked again after so long.
const REFUSED: Duration = Duration::from_secs(60);
/// Beaten by another who woke up too, one waits for the next release; only after so long it asks when that can be.
const REST: Duration = Duration::from_millis(60);
/// For so long a document may go from one to the next within this process, before others get a chance to be first.
const ROUND: Duration = Duration::from_millis(100);
/// That chance: longer than the news of a release takes to reach them.
const CHANCE: Duration = Duration::from_millis(16);

/// How long a caller is willing to wait.
pub struct Patience {
    ends: Option<Instant>,
    cancelled: watch::Receiver<bool>,
}

impl Patience {
    /// Waits until so much time has passed (`None`: for ever), or until the sender says true.
    pub fn new(wait: Option<Duration>) -> (Self, watch::Sender<bool>) {
        let (cancel, cancelled) = watch::channel(false);
        let ends = wait.and_then(|wait| Instant::now().checked_add(wait));
        (Self { ends, cancelled }, cancel)
    }

    /// Ends when the caller does not want to wait any more.
    pub async fn over(&self) {
        match self.ends {
            Some(ends) => tokio::select! {
                () = sleep_until(ends) => {}
                () = self.cancelled() => {}
            },
            None => self.cancelled().await,
        }
    }

    /// Whether the time has passed, or the caller has cancelled.
    pub fn is_over(&self) -> bool {
        *self.cancelled.borrow() || self.ends.is_some_and(|ends| ends <= Instant::now())
    }

    /// Ends when the caller has cancelled.
    pub async fn cancelled(&self) {
        // Nobody can cancel any more: it never will be.
        if self.cancelled.clone().wait_for(|cancelled| *cancelled).await.is_err() {
            pending::<()>().await;
        }
    }
}

/// What wakes the first of a queue; the more it says, the greater.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Something has happened: look.
    Look = 1,
    /// It was released.
    Try = 2,
    /// It was released by this process.
    HandOver = 3,
}

/// Those in this process who wait for one document.
struct Queue {
    id: Bson,
    /// Held by the first; the lock is handed on in the order of arrival.
    first: tokio::sync::Mutex<Known>,
    call: AtomicU8,
    called: Notify,
    /// The document is gone.
    gone: watch::Sender<bool>,
    /// The date that the last release of ours has written: the stream's news of it is none.
    own: Mutex<Option<DateTime>>,
}

/// What the first of a queue leaves to the next.
#[derive(Default)]
struct Known {
    /// The document is locked until then, unless it is released before.
    until: Option<Instant>,
    /// Since when it has been handed on within this process.
    ours_since: Option<Instant>,
}

impl Queue {
    fn new(id: Bson) -> Arc<Self> {
        Arc::new(Self {
            id,
            first: tokio::sync::Mutex::default(),
            call: AtomicU8::new(0),
            called: Notify::new(),
            gone: watch::channel(false).0,
            own: Mutex::default(),
        })
    }

    fn call(&self, call: Call) {
        self.call.fetch_max(call as u8, Ordering::AcqRel);
        self.called.notify_one();
    }

    /// Forgets what it was called for.
    fn quiet(&self) {
        self.call.store(0, Ordering::Release);
    }

    async fn called(&self) -> Call {
        loop {
            match self.call.swap(0, Ordering::AcqRel) {
                0 => self.called.notified().await,
                1 => return Call::Look,
                2 => return Call::Try,
                _ => return Call::HandOver,
            }
        }
    }

    async fn gone(&self) {
        // The sender is the queue's own.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    fn own(&self) -> MutexGuard<'_, Option<DateTime>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a queue; the queue ends with the last one who leaves.
pub struct Place {
    lobby: Arc<Lobby>,
    key: Vec<u8>,
    queue: Arc<Queue>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut hall = self.lobby.hall();
        if let Some(entry) = hall.queues.get_mut(&self.key)
            && Arc::ptr_eq(&entry.queue, &self.queue)
        {
            entry.waiting -= 1;
            if entry.waiting == 0 {
                hall.queues.remove(&self.key);
                hall.left = Instant::now();
            }
        }
    }
}

struct Entry {
    queue: Arc<Queue>,
    waiting: usize,
}

/// How news of releases come in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Feed {
    /// Not at all, so far.
    None,
    /// By a change stream.
    Live,
    /// The server refused a stream at that moment.
    Refused(Instant),
}

struct Hall {
    queues: HashMap<Vec<u8>, Entry>,
    /// How many listen for news of any document.
    listeners: usize,
    feed: Feed,
    /// Whether a task looks after the stream, and one after the poll.
    is_fed: bool,
    is_polled: bool,
    /// When the last one left.
    left: Instant,
}

impl Hall {
    fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.listeners == 0
    }

    /// Whether a task has to be started that looks after the stream.
    fn begins_to_feed(&mut self) -> bool {
        if self.is_fed || matches!(self.feed, Feed::Refused(at) if at.elapsed() < REFUSED) {
            return false;
        }
        self.is_fed = true;
        true
    }
}

/// Hears of all documents of a collection that may have become free.
pub struct Listener {
    lobby: Arc<Lobby>,
    news: watch::Receiver<()>,
}

impl Listener {
    /// Ends when something has happened since it ended last, or after a while at the latest: not all that happens is
    /// news, and time may have come for a document.
    pub async fn news(&mut self, longest: Duration) {
        // The sender is the lobby's own.
        let _ = timeout(longest.min(self.lobby.longest_poll), self.news.changed()).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut hall = self.lobby.hall();
        hall.listeners -= 1;
        hall.left = Instant::now();
    }
}

/// Where this process waits for the documents of one collection.
pub struct Lobby {
    watched: Watched,
    longest_poll: Duration,
    hall: Mutex<Hall>,
    /// The poll has to be more frequent.
    hurry: Notify,
    /// Something has happened that may concern those who listen.
    news: watch::Sender<()>,
    this: Weak<Lobby>,
}

impl Lobby {
    /// An empty lobby, for the collection and the lock's path of `target`; one where new documents are listened for too
    /// has another stream.
    pub fn new(target: &Target, inserted: bool) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            watched: target.watched(inserted),
            longest_poll: Duration::from_millis(target.poll_interval_ms.into()).max(SHORTEST_POLL),
            hall: Mutex::new(Hall {
                queues: HashMap::new(),
                listeners: 0,
                feed: Feed::None,
                is_fed: false,
                is_polled: false,
                left: Instant::now(),
            }),
            hurry: Notify::new(),
            news: watch::channel(()).0,
            this: Weak::clone(this),
        })
    }

    /// Whether somebody waits for the document.
    pub fn is_awaited(&self, id: &Bson) -> bool {
        let hall = self.hall();
        !hall.queues.is_empty() && hall.queues.contains_key(&key_of(id))
    }

    /// Tells whoever waits for it that this process has released the document, which is `released` now.
    pub fn hand_over(&self, id: &Bson, released: &Document) {
        let hall = self.hall();
        if hall.queues.is_empty() {
            return;
        }
        if let Some(Entry { queue, .. }) = hall.queues.get(&key_of(id)) {
            *queue.own() = self.watched.date(released);
            queue.call(Call::HandOver);
        }
    }

    /// Joins the queue of a document. News come by `database`, whose client is not the callers' own.
    pub fn enter(&self, id: &Bson, database: &Database) -> Option<Place> {
        let lobby = self.this.upgrade()?;
        let key = key_of(id);
        let (queue, feeds, polls) = {
            let mut hall = self.hall();
            let entry = hall
                .queues
                .entry(key.clone())
                .or_insert_with(|| Entry { queue: Queue::new(id.clone()), waiting: 0 });
            entry.waiting += 1;
            let (queue, is_first) = (Arc::clone(&entry.queue), entry.waiting == 1);
            if is_first && hall.feed != Feed::Live {
                self.hurry.notify_one();
            }
            let feeds = hall.begins_to_feed();
            let polls = !std::mem::replace(&mut hall.is_polled, true);
            (queue, feeds, polls)
        };
        if feeds {
            tokio::spawn(Self::feed(Weak::clone(&self.this), database.clone()));
        }
        if polls {
            tokio::spawn(Self::poll(Weak::clone(&self.this), database.clone()));
        }
        Some(Place { lobby, key, queue })
    }

    /// Listens for documents that are released, replaced or, if they are waited for, inserted.
    pub fn listen(&self, database: &Database) -> Option<Listener> {
        let lobby = self.this.upgrade()?;
        let feeds = {
            let mut hall = self.hall();
            hall.listeners += 1;
            hall.begins_to_feed()
        };
        if feeds {
            tokio::spawn(Self::feed(Weak::clone(&self.this), database.clone()));
        }
        let news = self.news.subscribe();
        Some(Listener { lobby, news })
    }

    fn hall(&self) -> MutexGuard<'_, Hall> {
        self.hall.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after the change stream while anybody waits, and opens another when it fails.
    async fn feed(lobby: Weak<Self>, database: Database) {
        loop {
            let Some(lobby) = lobby.upgrade() else { return };
            match lobby.open(&database).await {
                Ok(stream) => {
                    lobby.hall().feed = Feed::Live;
                    // What was released before the stream began is nobody's news.
                    lobby.call_all(Call::Look);
                    lobby.follow(stream).await;
                }
                Err(error) if error.is_refusal() => {
                    let mut hall = lobby.hall();
                    (hall.feed, hall.is_fed) = (Feed::Refused(Instant::now()), false);
                    return;
                }
                Err(_) => {}
            }
            {
                let mut hall = lobby.hall();
                hall.feed = Feed::None;
                if hall.is_empty() {
                    hall.is_fed = false;
                    return;
                }
            }
            lobby.hurry.notify_one();
            lobby.call_all(Call::Look);
            drop(lobby);
            sleep(jittered(REOPEN)).await;
        }
    }

    async fn open(&self, database: &Database) -> Result<ChangeStream<Document>, Error> {
        let collection = database.collection::<Document>(&self.watched.collection);
        Ok(collection.watch().pipeline(self.watched.releases()).await?.with_type())
    }

    /// Hands the stream's news on, until it fails or nobody has waited for some time.
    async fn follow(&self, mut stream: ChangeStream<Document>) {
        while stream.is_alive() {
            match stream.next_if_any().await {
                Ok(Some(event)) => self.tell(&event),
                Ok(None) => {
                    let hall = self.hall();
                    if hall.is_empty() && hall.left.elapsed() >= LINGER {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    fn tell(&self, event: &Document) {
        self.news.send_replace(());
        let Ok(id) = event.get_document("documentKey").map(|key| key.get("_id")) else {
            // The collection was dropped, or renamed: nothing is as it was.
            return self.call_all(Call::Look);
        };
        let key = key_of(id.unwrap_or(&Bson::Null));
        let Some(queue) = self.hall().queues.get(&key).map(|entry| Arc::clone(&entry.queue)) else {
            return;
        };
        match event.get_str("operationType") {
            Ok("delete") => self.end(&key, &queue),
            Ok("update") => {
                let date = event.get_datetime("locked").ok().copied();
                if date.is_none() || *queue.own() != date {
                    queue.call(Call::Try);
                }
            }
            _ => queue.call(Call::Look),
        }
    }

    /// Ends a queue: the document is gone. Whoever comes from now on waits for another one of the same name.
    fn end(&self, key: &[u8], queue: &Arc<Queue>) {
        queue.gone.send_replace(true);
        let mut hall = self.hall();
        if hall.queues.get(key).is_some_and(|entry| Arc::ptr_eq(&entry.queue, queue)) {
            hall.queues.remove(key);
            hall.left = Instant::now();
        }
    }

    fn call_all(&self, call: Call) {
        self.news.send_replace(());
        for Entry { queue, .. } in self.hall().queues.values() {
            queue.call(call);
        }
    }

    /// Looks at all documents that are waited for, now and then, while there are any.
    async fn poll(lobby: Weak<Self>, database: Database) {
        let mut pause = SHORTEST_POLL;
        loop {
            let Some(lobby) = lobby.upgrade() else { return };
            let is_live = lobby.hall().feed == Feed::Live;
            pause = if is_live { SAFETY_POLL } else { lobby.longest_poll.min(pause) };
            let next = sleep(jittered(pause));
            let is_late = tokio::select! {
                () = next => true,
                () = lobby.hurry.notified() => false,
            };
            if !is_late {
                // Somebody came, or the stream is gone: not at once, but soon. What is due by then is late enough.
                pause = SHORTEST_POLL;
                sleep(jittered(pause)).await;
            }
            let documents: Vec<Bson> = {
                let mut hall = lobby.hall();
                if hall.queues.is_empty() {
                    hall.is_polled = false;
                    return;
                }
                hall.queues.values().map(|entry| entry.queue.id.clone()).collect()
            };
            for batch in documents.chunks(BATCH) {
                // What cannot be seen now may be seen the next time.
                let _ = lobby.look_at(&database, batch).await;
            }
            // Up to three times as long, at random: processes that poll together drift apart.
            pause = jittered(pause * 3).max(SHORTEST_POLL);
        }
    }

    async fn look_at(&self, database: &Database, ids: &[Bson]) -> Result<(), Error> {
        let mut reply = run(database, &self.watched.find_free(ids)).await?;
        let found = reply
            .get_document_mut("cursor")
            .and_then(|cursor| cursor.get_array_mut("firstBatch").map(std::mem::take))
            .unwrap_or_default();
        let found: HashMap<Vec<u8>, bool> = found
            .iter()
            .filter_map(Bson::as_document)
            .filter_map(|seen| Some((key_of(seen.get("_id")?), seen.get_bool("free").ok()?)))
            .collect();
        let hall = self.hall();
        for key in ids.iter().map(key_of) {
            let Some(Entry { queue, .. }) = hall.queues.get(&key) else { continue };
            match found.get(&key) {
                Some(true) => queue.call(Call::Try),
                Some(false) => {}
                // Not for certain: a number may have been found under another type's name. Each looks for itself.
                None => queue.call(Call::Look),
            }
        }
        Ok(())
    }
}

/// What the first of a queue does next.
enum Step {
    Look,
    Try,
    Sleep(Instant),
}

/// Waits until the document is locked, gone, or the patience is over, and replies with that.
pub async fn wait<A: Replying<Option<Locked>>>(
    collection: &Collection,
    request: &Request,
    patience: &Patience,
    reply: &mut Reply<Option<Locked>, A>,
) {
    let place = match collection.enter(request) {
        Ok(place) => place,
        Err(error) => return reply.give(Err(error)),
    };
    let queue = &place.queue;
    let over = collection.over(patience);
    tokio::pin!(over);
    let mut known = tokio::select! {
        known = queue.first.lock() => known,
        () = queue.gone() => return reply.give(Ok(None)),
        end = &mut over => return reply.give(end),
    };
    let mut step = match known.until {
        // Whoever was here before has it, or knows when it can be had.
        Some(until) if until > Instant::now() => Step::Sleep(until),
        _ => Step::Look,
    };
    loop {
        step = match step {
            Step::Look => match collection.look(&request.subject, &mut over, reply).await {
                None => return,
                Some(None) => {
                    if request.subject.key.len() == 1 {
                        place.lobby.end(&place.key, queue);
                    }
                    return reply.give(Ok(None));
                }
                Some(Some(Duration::ZERO)) => Step::Try,
                Some(Some(left)) => Step::Sleep(Instant::now() + left),
            },
            Step::Try => match collection.try_once(request, &mut over, reply).await {
                Tried::Refused => Step::Sleep(Instant::now() + jittered(REST)),
                Tried::Won(left) => {
                    queue.quiet();
                    known.until = Some(Instant::now() + left);
                    known.ours_since.get_or_insert_with(Instant::now);
                    return;
                }
                Tried::Ended => return,
            },
            Step::Sleep(until) => {
                known.until = Some(until);
                tokio::select! {
                    call = queue.called() => match call {
                        Call::HandOver => taken_in_turns(&mut known).await,
                        call => {
                            known.ours_since = None;
                            if call == Call::Try { Step::Try } else { Step::Look }
                        }
                    },
                    () = sleep_until(until) => Step::Look,
                    () = queue.gone() => return reply.give(Ok(None)),
                    end = &mut over => return reply.give(end),
                }
            }
        };
    }
}

/// Goes on at once, unless this process has had the document for some time: then others have a chance to be first.
async fn taken_in_turns(known: &mut Turn<'_, Known>) -> Step {
    known.until = None;
    if known.ours_since.is_none_or(|since| since.elapsed() < ROUND) {
        return Step::Try;
    }
    known.ours_since = None;
    sleep(jittered(CHANCE)).await;
    Step::Try
}

/// What equal `_id`s have in common: the server takes numbers of different types for the same.
fn key_of(id: &Bson) -> Vec<u8> {
    doc! { "": normal(id) }.to_vec().unwrap_or_default()
}

fn normal(value: &Bson) -> Bson {
    match value {
        Bson::Int32(number) => Bson::Int64(i64::from(*number)),
        // Whole, and small enough that nothing is lost.
        Bson::Double(number) if number.fract() == 0.0 && number.abs() < 9e15 =>
        {
            #[allow(clippy::cast_possible_truncation)]
            Bson::Int64(*number as i64)
        }
        Bson::Document(document) => Bson::Document(
            document.iter().map(|(name, value)| (name.clone(), normal(value))).collect(),
        ),
        Bson::Array(values) => Bson::Array(values.iter().map(normal).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ids_of_different_types_have_one_queue() {
        assert_eq!(key_of(&Bson::Int32(1)), key_of(&Bson::Double(1.0)));
        assert_eq!(key_of(&Bson::Int64(7)), key_of(&Bson::Int32(7)));
        assert_ne!(key_of(&Bson::Double(1.5)), key_of(&Bson::Int32(1)));
        assert_ne!(key_of(&Bson::String("1".into())), key_of(&Bson::Int32(1)));
        let (int, double) = (doc! { "a": [1, 2] }, doc! { "a": [1.0, 2_i64] });
        assert_eq!(key_of(&Bson::Document(int)), key_of(&Bson::Document(double)));
    }

    #[tokio::test]
    async fn a_call_that_comes_before_it_is_waited_for_is_not_missed() {
        let queue = Queue::new(Bson::Int32(1));
        queue.call(Call::Try);
        queue.call(Call::Look);
        assert!(queue.called().await == Call::Try, "the one that says more");
        let next = tokio::time::timeout(Duration::from_millis(20), queue.called()).await;
        assert!(next.is_err(), "both were one");
    }

    #[tokio::test]
    async fn patience_ends_by_time_or_by_word_and_not_because_nobody_can_say_it() {
        let (short, _cancel) = Patience::new(Some(Duration::from_millis(5)));
        short.over().await;
        let (endless, cancel) = Patience::new(None);
        drop(cancel);
        let over = tokio::time::timeout(Duration::from_millis(20), endless.over()).await;
        assert!(over.is_err());
        let (endless, cancel) = Patience::new(None);
        cancel.send_replace(true);
        endless.over().await;
    }
}

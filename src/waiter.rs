//! Waits for locked documents: wakes when one is released, else when its lock is known to expire.
//!
//! A [`Lobby`] is where this process waits for the documents of one collection. Whoever is willing to wait for the same
//! document queues up, and the first of a queue alone talks to the server. While anybody waits, one change stream tells of
//! releases; a poll, one command for all documents, is the safety net under it and does its work where there is none.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use mongodb::Database;
use mongodb::change_stream::ChangeStream;
use tokio::sync::{Notify, OwnedMutexGuard, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::call::{Reply, Replying};
use crate::chance::jittered;
use crate::command::{Target, Watched};
use crate::error::Error;
use crate::lease::Moment;
use crate::patience::Patience;
use crate::store::{Collection, Locked, Request, Tried, run};
use crate::turns::{Crowds, Turns};

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
const REST: Duration = Duration::from_millis(150);

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
    /// Held by the first, handed on in the order of arrival: until when the document is locked, unless it is released
    /// before. `None` if that is not known, or may have changed.
    first: Arc<tokio::sync::Mutex<Option<Instant>>>,
    call: AtomicU8,
    called: Notify,
    /// The document is gone.
    gone: watch::Sender<bool>,
    /// The date that the last release of ours has written: the stream's news of it is none.
    own: Mutex<Option<DateTime>>,
}

impl Queue {
    fn new(id: Bson) -> Arc<Self> {
        Arc::new(Self {
            id,
            first: Arc::default(),
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

    /// Tells the next what to expect, and forgets what it was called for. To be done before the lock is handed out: it may
    /// be released at any moment from then on, and that call is the next one's.
    fn leave_word(&self, first: &mut First, locked: &Locked) {
        **first = Some(Instant::now() + locked.lease.remaining(Moment::now()));
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
    /// Nobody was there before.
    is_opener: bool,
    turn: Turn,
}

type First = OwnedMutexGuard<Option<Instant>>;

/// When the one who has a place is the first.
enum Turn {
    Now(First),
    Later(Pin<Box<dyn Future<Output = First> + Send>>),
    Taken,
}

impl Turn {
    /// Lines up at once, and not only when somebody looks whose turn it is.
    fn in_line(queue: &Queue) -> Self {
        let mut later = Box::pin(Arc::clone(&queue.first).lock_owned());
        match later.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(first) => Self::Now(first),
            Poll::Pending => Self::Later(later),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut hall = self.lobby.hall();
        if let Some(entry) = hall.queues.get_mut(&self.key)
            && Arc::ptr_eq(&entry.queue, &self.queue)
        {
            entry.places -= 1;
            if entry.places == 0 {
                hall.close(&self.key);
            }
        }
    }
}

struct Entry {
    queue: Arc<Queue>,
    places: usize,
    /// Somebody in it waits. Before that, the one who opened it tries his luck.
    is_waiting: bool,
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
    turns: Turns,
    crowds: Crowds,
    /// How many listen for news of any document.
    listeners: usize,
    /// Whether anybody was ever willing to wait.
    is_used: bool,
    feed: Feed,
    /// Whether a task looks after the stream, and one after the poll.
    is_fed: bool,
    is_polled: bool,
    /// When the last one left who had waited.
    left: Instant,
}

impl Hall {
    fn waiting(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.queues.values().filter(|entry| entry.is_waiting).map(|entry| &entry.queue)
    }

    fn is_deserted(&self) -> bool {
        self.listeners == 0 && self.waiting().next().is_none()
    }

    /// Whether a task has to be started that looks after the stream.
    fn begins_to_feed(&mut self) -> bool {
        if self.is_fed || matches!(self.feed, Feed::Refused(at) if at.elapsed() < REFUSED) {
            return false;
        }
        self.is_fed = true;
        true
    }

    fn close(&mut self, key: &[u8]) {
        if self.queues.remove(key).is_some_and(|entry| entry.is_waiting) {
            self.left = Instant::now();
        }
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
                turns: Turns::default(),
                crowds: Crowds::default(),
                listeners: 0,
                is_used: false,
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

    /// Tells whoever waits for it that this process has released the document, which is `released` now.
    pub fn hand_over(&self, id: &Bson, released: &Document) {
        let mut hall = self.hall();
        if !hall.is_used {
            return;
        }
        let key = key_of(id);
        if let Some(Entry { queue, .. }) = hall.queues.get(&key) {
            *queue.own() = self.watched.date(released);
            queue.call(Call::HandOver);
        }
        hall.turns.released(key);
    }

    /// Joins the queue of a document.
    pub fn enter(&self, id: &Bson) -> Option<Place> {
        let lobby = self.this.upgrade()?;
        let key = key_of(id);
        let mut hall = self.hall();
        hall.is_used = true;
        let entry = hall.queues.entry(key.clone()).or_insert_with(|| Entry {
            queue: Queue::new(id.clone()),
            places: 0,
            is_waiting: false,
        });
        let is_opener = entry.places == 0;
        entry.places += 1;
        let queue = Arc::clone(&entry.queue);
        let turn = Turn::in_line(&queue);
        drop(hall);
        Some(Place { lobby, key, queue, is_opener, turn })
    }

    /// Sees to it that news come in for a queue, by `database`, whose client is not the callers' own.
    pub fn attend(&self, key: &[u8], database: &Database) {
        let (feeds, polls) = {
            let mut hall = self.hall();
            let is_live = hall.feed == Feed::Live;
            let Some(entry) = hall.queues.get_mut(key) else { return };
            if !std::mem::replace(&mut entry.is_waiting, true) && !is_live {
                self.hurry.notify_one();
            }
            (hall.begins_to_feed(), !std::mem::replace(&mut hall.is_polled, true))
        };
        if feeds {
            tokio::spawn(Self::feed(Weak::clone(&self.this), database.clone()));
        }
        if polls {
            tokio::spawn(Self::poll(Weak::clone(&self.this), database.clone()));
        }
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

    /// Lets others be first, if this process has had the document for some time without a break.
    async fn take_turns(&self, key: &[u8]) {
        let pause = {
            let mut hall = self.hall();
            let has_news = !matches!(hall.feed, Feed::Refused(_));
            hall.turns.pause(key, has_news)
        };
        if let Some(pause) = pause {
            sleep(jittered(pause)).await;
        }
    }

    /// Somebody else has, or had, the document.
    fn end_turn(&self, key: &[u8]) {
        self.hall().turns.end(key);
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
                    // What was released before the stream began is no news: the poll finds it.
                    lobby.hurry.notify_one();
                    lobby.news.send_replace(());
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
                if hall.is_deserted() {
                    hall.is_fed = false;
                    return;
                }
            }
            lobby.hurry.notify_one();
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
                    if hall.is_deserted() && hall.left.elapsed() >= LINGER {
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
            return self.hurry.notify_one();
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
            hall.close(key);
        }
    }

    /// Looks at all documents that are waited for, now and then, while there are any.
    async fn poll(lobby: Weak<Self>, database: Database) {
        let mut pause = SHORTEST_POLL;
        // Whether there may be something that the stream did not tell.
        let mut is_due = true;
        loop {
            let Some(lobby) = lobby.upgrade() else { return };
            let is_safe = !is_due && lobby.hall().feed == Feed::Live;
            pause = if is_safe { SAFETY_POLL } else { lobby.longest_poll.min(pause) };
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
                if hall.is_deserted() {
                    hall.is_polled = false;
                    return;
                }
                hall.waiting().map(|queue| queue.id.clone()).collect()
            };
            is_due = false;
            for batch in documents.chunks(BATCH) {
                is_due |= lobby.look_at(&database, batch).await.is_err();
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
    Begin,
    Look,
    Try,
    /// And then look.
    Sleep(Instant),
    /// And then try.
    StandBack(Instant),
}

/// Waits until the document is locked, gone, or the patience is over, and replies with that.
pub async fn wait<A: Replying<Option<Locked>>>(
    collection: &Collection,
    mut place: Place,
    request: &Request,
    patience: &Patience,
    reply: &mut Reply<Option<Locked>, A>,
) {
    let over = collection.over(patience);
    tokio::pin!(over);
    let turn = std::mem::replace(&mut place.turn, Turn::Taken);
    let (lobby, key, queue) = (&place.lobby, &place.key, &place.queue);
    let mut first = match turn {
        Turn::Now(first) => first,
        Turn::Later(first) => tokio::select! {
            biased;
            end = &mut over => return reply.give(end),
            () = queue.gone() => return reply.give(Ok(None)),
            first = first => first,
        },
        Turn::Taken => return,
    };
    let mut step = match *first {
        _ if place.is_opener => Step::Begin,
        // Whoever was here before has it, or knows when it can be had.
        Some(until) if until > Instant::now() => Step::Sleep(until),
        _ => Step::Look,
    };
    let (mut releases, mut losses) = (0, 0);
    loop {
        step = match step {
            Step::Begin => {
                lobby.take_turns(key).await;
                // However short the patience: a document that is free is had.
                let cancelled = async {
                    patience.cancelled().await;
                    Ok(None)
                };
                match collection.try_once(request, cancelled, reply).await {
                    Tried::Refused => {
                        lobby.end_turn(key);
                        Step::Look
                    }
                    Tried::Won(locked) => {
                        queue.leave_word(&mut first, &locked);
                        return collection.hand_out(request, locked, reply).await;
                    }
                    Tried::Ended => return,
                }
            }
            Step::Look => match collection.look(&request.subject, &mut over, reply).await {
                None => return,
                Some(None) => {
                    if request.subject.key.len() == 1 {
                        lobby.end(key, queue);
                    }
                    return reply.give(Ok(None));
                }
                Some(Some(Duration::ZERO)) => Step::Try,
                Some(Some(left)) => Step::Sleep(Instant::now() + left),
            },
            Step::Try => match collection.try_once(request, &mut over, reply).await {
                Tried::Refused => {
                    losses += 1;
                    lobby.end_turn(key);
                    Step::Sleep(Instant::now() + jittered(REST))
                }
                Tried::Won(locked) => {
                    lobby.hall().crowds.note(key, losses);
                    queue.leave_word(&mut first, &locked);
                    return collection.hand_out(request, locked, reply).await;
                }
                Tried::Ended => return,
            },
            Step::Sleep(until) | Step::StandBack(until) => {
                let stands_back = matches!(step, Step::StandBack(_));
                if let Err(error) = collection.attend(lobby, key) {
                    return reply.give(Err(error));
                }
                *first = (!stands_back).then_some(until);
                let call = tokio::select! {
                    call = queue.called() => Some(call),
                    () = sleep_until(until) => None,
                    () = queue.gone() => return reply.give(Ok(None)),
                    end = &mut over => return reply.give(end),
                };
                // Should this one leave before it has made use of it, the next has to look for itself.
                *first = None;
                match call {
                    Some(Call::HandOver) => {
                        lobby.take_turns(key).await;
                        Step::Try
                    }
                    Some(Call::Try) => {
                        lobby.end_turn(key);
                        releases += 1;
                        let pause = lobby.hall().crowds.pause(key, releases);
                        Step::StandBack(Instant::now() + pause)
                    }
                    None if stands_back => Step::Try,
                    Some(Call::Look) | None => Step::Look,
                }
            }
        };
    }
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
}

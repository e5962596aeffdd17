//! Renews the locks that are held, in batches, and notices those that are lost.
//!
//! The locks of one collection that are kept on the same terms are a group, with a task of its own that lives as long
//! as the group has members. It renews each lock at about a third of its duration, whatever the event loop does, and lets a lock
//! lapse that is held for too long, or by a process that hangs. It keeps nothing and nobody alive.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bson::{Bson, Document, oid::ObjectId};
use mongodb::Database;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio::time::{sleep, timeout};

use crate::command::{Subject, Target};
use crate::error::Error;
use crate::lease::{Lease, Moment, Reason, Standing};
use crate::store::run;

/// The most locks in one command.
const BATCH: usize = 1000;
/// Into how many parts a batch is divided that one of its documents blocks: three steps lead to single locks.
const PARTS: usize = 32;
/// A group's task looks at its locks at least this far apart.
const SHORTEST_TICK: Duration = Duration::from_millis(10);

/// Tells whether the event loop of the locks' holder still turns.
pub trait Pulse: Send + Sync {
    /// How long it has not answered; zero while it does. Asks it to give a sign of life unless it is being asked.
    fn stalled_for(&self, now: Moment) -> Duration;
}

/// How long a lock is to be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// The lock's duration.
    pub duration_ms: i64,
    /// Renewing stops when the lock has been held for so long.
    pub max_hold: Duration,
    /// Renewing stops when the event loop has not turned for so long.
    pub max_stall: Duration,
}

/// One lock that is being kept.
#[derive(Clone)]
struct Kept {
    id: Bson,
    key: Document,
    lease: Arc<Lease>,
    terms: Terms,
}

/// One lock that is to be renewed now; no other command about it is sent meanwhile.
struct Due {
    kept: Kept,
    _turn: OwnedMutexGuard<()>,
}

impl Due {
    fn kept(&self) -> Kept {
        self.kept.clone()
    }
}

/// The locks of one collection that are being kept, by their terms.
pub struct Keeper {
    database: Database,
    target: Target,
    pulse: Arc<dyn Pulse>,
    groups: Mutex<HashMap<Terms, Vec<Kept>>>,
    /// Bounds what is on its way at once: renewals that fail must not pile up.
    places: Arc<Semaphore>,
    /// Held while all is being released: whoever comes second waits for it.
    releasing: tokio::sync::Mutex<()>,
    /// Itself, for the tasks: they end with it.
    this: Weak<Keeper>,
}

impl Keeper {
    /// A keeper that keeps nothing yet. Its commands go by `database`, whose client is not the callers' own.
    /// No more of them are on their way at once than there are `places`.
    pub fn new(
        database: Database,
        target: Target,
        pulse: Arc<dyn Pulse>,
        places: Arc<Semaphore>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            database,
            target,
            pulse,
            groups: Mutex::default(),
            places,
            releasing: tokio::sync::Mutex::default(),
            this: Weak::clone(this),
        })
    }

    /// Keeps a lock until it is released, lost, or not wanted any more. On the runtime only.
    pub fn keep(&self, key: Document, lease: Arc<Lease>, terms: Terms) {
        // So that the first look finds an answer, or its absence.
        self.pulse.stalled_for(Moment::now());
        let id = key.get("_id").cloned().unwrap_or(Bson::Null);
        let kept = Kept { id, key, lease, terms };
        let is_first = {
            let mut groups = self.groups();
            let group = groups.entry(terms).or_default();
            group.push(kept);
            group.len() == 1
        };
        if is_first {
            tokio::spawn(Self::tend(Weak::clone(&self.this), terms));
        }
    }

    /// Releases all that is kept, in batches; what is being released by its holder already is left to that.
    pub async fn release_all(&self) {
        let _one = self.releasing.lock().await;
        let kept: Vec<_> = std::mem::take(&mut *self.groups()).into_values().flatten().collect();
        let holds: Vec<_> = kept
            .into_iter()
            .filter(|kept| kept.lease.standing() == Standing::Held)
            .map(|kept| {
                kept.lease.set_standing(Standing::Releasing);
                (kept.id, kept.lease.hold().lease)
            })
            .collect();
        for batch in holds.chunks(BATCH) {
            let command = self.target.release_all(batch, 1000);
            // The process goes on to its end, or the client to its close: what is not released lapses.
            let _ = run(&self.database, &command).await;
        }
    }

    fn groups(&self) -> std::sync::MutexGuard<'_, HashMap<Terms, Vec<Kept>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after one group until it is empty.
    async fn tend(keeper: Weak<Self>, terms: Terms) {
        loop {
            sleep(terms.tick()).await;
            let Some(keeper) = keeper.upgrade() else { return };
            let now = Moment::now();
            let stalled = keeper.pulse.stalled_for(now);
            let mut due = Vec::new();
            {
                let mut groups = keeper.groups();
                let Some(group) = groups.get_mut(&terms) else { return };
                group.retain(|kept| kept.is_kept(now));
                if group.is_empty() {
                    groups.remove(&terms);
                    return;
                }
                for kept in group.iter() {
                    // Whoever has the turn renews it, prolongs it or releases it just now.
                    if kept.is_due(now, stalled)
                        && let Some(turn) = kept.lease.try_turn()
                    {
                        due.push(Due { kept: kept.clone(), _turn: turn });
                    }
                }
            }
            for batch in split(due, BATCH) {
                tokio::spawn(Arc::clone(&keeper).renew(batch));
            }
        }
    }

    /// Renews a batch of locks on the same terms. Sends it again while that may help, and in parts when one of its
    /// documents blocks it. (Boxed, since it calls itself.)
    fn renew(self: Arc<Self>, mut batch: Vec<Due>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            loop {
                batch.retain(|due| self.is_wanted(&due.kept));
                let Some(first) = batch.first() else { return };
                let terms = first.kept.terms;
                let patience = terms.patience();
                // A place first, then the clock: what waits here is not sent, and is not late because of it.
                let left = first.kept.lease.deadline().since(Moment::now());
                let Ok(Ok(place)) = timeout(left, Arc::clone(&self.places).acquire_owned()).await
                else {
                    note_unreachable(&batch);
                    return;
                };
                let sent = Moment::now();
                let (keeper, asked) = (Arc::clone(&self), batch.iter().map(Due::kept).collect());
                // In a task of its own: the driver's futures must not be dropped half-way, and a network that swallows
                // everything must not hold us up. It keeps its place until it has really ended.
                let attempt = tokio::spawn(async move {
                    let _place = place;
                    keeper.ask(asked).await
                });
                match timeout(patience + patience / 4, attempt).await {
                    Ok(Ok(Ok(losses))) => {
                        for (Due { kept, .. }, loss) in batch.iter().zip(losses) {
                            match loss {
                                Some(reason) => kept.lease.lose(reason),
                                None => kept.renewed(sent),
                            }
                        }
                        return;
                    }
                    Ok(Ok(Err(error))) if batch.len() > 1 && !may_pass(&error) => {
                        let size = batch.len().div_ceil(PARTS);
                        for part in split(batch, size) {
                            tokio::spawn(Arc::clone(&self).renew(part));
                        }
                        return;
                    }
                    _ => {
                        note_unreachable(&batch);
                        sleep(patience / 2).await;
                    }
                }
            }
        })
    }

    /// Asks the server to renew the locks; tells for each why it is lost, or nothing when it has been renewed.
    async fn ask(&self, batch: Vec<Kept>) -> Result<Vec<Option<Reason>>, Error> {
        match batch.as_slice() {
            [kept] => Ok(vec![self.renew_one(kept).await?]),
            batch => self.renew_batch(batch).await,
        }
    }

    /// Tells for each of the batch why it is lost, or nothing when it has been renewed.
    async fn renew_batch(&self, batch: &[Kept]) -> Result<Vec<Option<Reason>>, Error> {
        let Some(terms) = batch.first().map(|kept| kept.terms) else { return Ok(Vec::new()) };
        let holds: Vec<_> = batch.iter().map(Kept::hold).collect();
        let (duration_ms, ms) = (terms.duration_ms, milliseconds(terms.patience()));
        let reply = run(&self.database, &self.target.renew_all(&holds, duration_ms, ms)).await?;
        let matched =
            reply.get_i32("n").map_or_else(|_| reply.get_i64("n").unwrap_or(0), i64::from);
        if usize::try_from(matched) == Ok(holds.len()) {
            return Ok(vec![None; holds.len()]);
        }
        self.losses(&holds, ms).await
    }

    /// Asks the primary which of the locks are held.
    async fn losses(
        &self,
        holds: &[(Bson, ObjectId)],
        max_time_ms: i64,
    ) -> Result<Vec<Option<Reason>>, Error> {
        let mut reply = run(&self.database, &self.target.find_all(holds, max_time_ms)).await?;
        let found = reply
            .get_document_mut("cursor")
            .and_then(|cursor| cursor.get_array_mut("firstBatch").map(std::mem::take))
            .unwrap_or_default();
        Ok(holds.iter().map(|(id, lease)| loss(&found, id, *lease)).collect())
    }

    fn is_wanted(&self, kept: &Kept) -> bool {
        let now = Moment::now();
        kept.is_wanted(now, self.pulse.stalled_for(now))
    }

    /// Tells why the lock is lost, or nothing when it has been renewed.
    async fn renew_one(&self, kept: &Kept) -> Result<Option<Reason>, Error> {
        let subject = Subject::of(kept.key.clone());
        let ms = milliseconds(kept.terms.patience());
        let command = self.target.extend(&subject, kept.lease.hold(), kept.terms.duration_ms, ms);
        let reply = run(&self.database, &command).await?;
        if reply.get_document("value").is_ok() {
            return Ok(None);
        }
        let reason = self.losses(&[kept.hold()], ms).await?.pop().flatten();
        Ok(reason.or(Some(Reason::Expired)))
    }
}

impl Kept {
    fn hold(&self) -> (Bson, ObjectId) {
        (self.id.clone(), self.lease.hold().lease)
    }

    /// Whether it stays in its group. One whose deadline has passed is over, whoever notices first.
    fn is_kept(&self, now: Moment) -> bool {
        self.lease.is_wanted() && now < self.lease.deadline()
    }

    /// Whether it is to be renewed at all; notes why if not.
    fn is_wanted(&self, now: Moment, stalled: Duration) -> bool {
        if !self.is_kept(now) {
            return false;
        }
        let stalled = stalled >= self.terms.stall_limit();
        let too_long = now.since(self.lease.began()) >= self.terms.max_hold;
        if stalled || too_long {
            self.lease.set_reason(if too_long { Reason::MaxHold } else { Reason::MaxStall });
        }
        !(stalled || too_long)
    }

    /// Whether a third of its duration has passed since it was last renewed.
    fn is_due(&self, now: Moment, stalled: Duration) -> bool {
        let third = self.terms.third();
        // The tick is a third too: without the slack a lock would often be a hair too young, and wait for two.
        self.is_wanted(now, stalled) && self.lease.deadline().since(now) <= third * 2 + third / 4
    }

    /// Notes that it was renewed by a command that was sent at that moment.
    fn renewed(&self, sent: Moment) {
        self.lease.set_reason(Reason::Expired);
        self.lease.prolong(sent.deadline(self.terms.duration_ms));
    }
}

impl Terms {
    fn third(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.duration_ms).unwrap_or(0)) / 3
    }

    /// How long one attempt to renew may take on the server: one document that is written in a user's open transaction
    /// blocks its batch. Three attempts, each with a part of the one before, fit between a third and the deadline.
    fn patience(&self) -> Duration {
        (self.third() / 2).max(SHORTEST_TICK)
    }

    /// How often a group's task looks at its locks, and asks for a sign of life.
    fn tick(&self) -> Duration {
        self.third().min(self.max_stall / 10).max(SHORTEST_TICK)
    }

    /// After so long without an answer no lock is renewed. A hang may begin a tick before it is asked about: with that
    /// tick taken off, the last renewal is never later than `max_stall` after the hang began.
    fn stall_limit(&self) -> Duration {
        self.max_stall.saturating_sub(self.max_stall / 10)
    }
}

fn note_unreachable(batch: &[Due]) {
    for due in batch {
        due.kept.lease.set_reason(Reason::Unreachable);
    }
}

/// Whether the very same command may succeed a little later; if not, one of its documents may be to blame.
fn may_pass(error: &Error) -> bool {
    error.is_passing() || error.is_server_selection()
}

/// The batch in parts of at most this size.
fn split(mut batch: Vec<Due>, size: usize) -> Vec<Vec<Due>> {
    let mut parts = Vec::new();
    while !batch.is_empty() {
        let rest = batch.split_off(batch.len().min(size.max(1)));
        parts.push(std::mem::replace(&mut batch, rest));
    }
    parts
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Why the lock is lost, by what was found; nothing if it is held.
fn loss(found: &[Bson], id: &Bson, lease: ObjectId) -> Option<Reason> {
    let mut documents = found.iter().filter_map(Bson::as_document);
    let has_lease = |document: &&Document| document.get_object_id("lease").ok() == Some(lease);
    let mut leased = documents.clone().filter(has_lease);
    // By the lease, since an equal number may come back as one of another type; one lease may have several documents.
    let (first, second) = (leased.next(), leased.next());
    let mine = match (first, second) {
        (Some(only), None) => Some(only),
        (None, _) => None,
        _ => documents.clone().filter(has_lease).find(|document| document.get("_id") == Some(id)),
    };
    match mine {
        Some(document) if document.get_bool("held").unwrap_or(false) => None,
        Some(document) if document.get_bool("untouched").unwrap_or(false) => Some(Reason::Expired),
        Some(_) => Some(Reason::TakenOver),
        None if documents.any(|document| document.get("_id") == Some(id)) => {
            Some(Reason::TakenOver)
        }
        None => Some(Reason::Deleted),
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;
    use crate::command::Hold;

    #[test]
    fn a_loss_has_a_reason() {
        let (mine, theirs) = (ObjectId::new(), ObjectId::new());
        let (lapsed, freed) = (ObjectId::new(), ObjectId::new());
        let found = [
            Bson::Document(doc! { "_id": 1.0, "lease": mine, "held": true }),
            Bson::Document(doc! { "_id": 2, "lease": theirs, "held": true }),
            Bson::Document(doc! { "_id": 3, "lease": lapsed, "held": false, "untouched": true }),
            Bson::Document(doc! { "_id": 5, "lease": freed, "held": false, "untouched": false }),
        ];
        assert_eq!(loss(&found, &Bson::Int32(1), mine), None, "1 and 1.0 are the same _id");
        assert_eq!(loss(&found, &Bson::Int32(2), ObjectId::new()), Some(Reason::TakenOver));
        assert_eq!(loss(&found, &Bson::Int32(3), lapsed), Some(Reason::Expired));
        assert_eq!(loss(&found, &Bson::Int32(4), ObjectId::new()), Some(Reason::Deleted));
        assert_eq!(loss(&found, &Bson::Int32(5), freed), Some(Reason::TakenOver));
    }

    #[test]
    fn one_lease_may_have_several_documents() {
        let lease = ObjectId::new();
        let found = [
            Bson::Document(doc! { "_id": 1, "lease": lease, "held": true }),
            Bson::Document(doc! { "_id": 2, "lease": lease, "held": false, "untouched": true }),
        ];
        assert_eq!(loss(&found, &Bson::Int32(1), lease), None);
        assert_eq!(loss(&found, &Bson::Int32(2), lease), Some(Reason::Expired));
    }

    fn kept(max_hold: Duration) -> (Kept, Moment) {
        let began = Moment::now();
        let hold = Hold { lease: ObjectId::new(), token: None };
        let lease = Arc::new(Lease::new(hold, began, began.plus_ms(3000)));
        let terms = Terms { duration_ms: 3000, max_hold, max_stall: Duration::from_secs(60) };
        (Kept { id: Bson::Int32(1), key: doc! { "_id": 1 }, lease, terms }, began)
    }

    #[test]
    fn a_lock_is_due_after_a_third_of_its_duration() {
        let (kept, began) = kept(Duration::MAX);
        assert!(!kept.is_due(began, Duration::ZERO));
        assert!(kept.is_due(began.plus_ms(1000), Duration::ZERO));
        assert!(!kept.is_due(began.plus_ms(3000), Duration::ZERO), "never revived");
    }

    #[test]
    fn a_hang_is_looked_for_often_enough_to_be_found_in_time() {
        let terms = |duration_ms, max_stall| Terms {
            duration_ms,
            max_hold: Duration::MAX,
            max_stall: Duration::from_millis(max_stall),
        };
        assert_eq!(terms(3000, 60_000).tick(), Duration::from_secs(1));
        let long = terms(300_000, 1000);
        assert_eq!(long.tick(), Duration::from_millis(100));
        assert!(long.stall_limit() + long.tick() <= long.max_stall);
        let endless = Terms { max_stall: Duration::MAX, ..long };
        assert!(endless.stall_limit() > Duration::from_secs(u64::MAX / 2));
    }

    #[test]
    fn a_hanging_process_and_a_long_hold_let_go_and_say_why() {
        let (hanging, began) = kept(Duration::MAX);
        assert!(!hanging.is_wanted(began, Duration::from_secs(60)));
        assert_eq!(hanging.lease.reason(), Reason::MaxStall);
        let (long, began) = kept(Duration::from_secs(1));
        assert!(long.is_wanted(began, Duration::ZERO));
        assert!(!long.is_wanted(began.plus_ms(1000), Duration::ZERO));
        assert_eq!(long.lease.reason(), Reason::MaxHold);
    }
}

//! Claims many documents by a query: finds free ones, locks them with one lease, and reads back what was won.
//!
//! Claimers do not agree on anything. Where they get into each other's way, each looks at more candidates than it needs and
//! takes those of its share: documents fall into as many shares, by a hash of their `_id` that all processes have in
//! common, and a claimer that was beaten draws another share. One that is alone takes the first.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bson::{Bson, Document, doc, oid::ObjectId};
use tokio::time::{Instant, sleep};

use crate::call::{Call, Reply, Replying};
use crate::chance::{jittered, random};
use crate::command::{Query, Subject};
use crate::error::Error;
use crate::keeper::Terms;
use crate::lease::{Lease, Moment};
use crate::patience::Patience;
use crate::store::{Collection, Failed, Locked};

/// Candidates for each document that is wanted, at most: the number of shares.
const WIDEST: u32 = 16;
/// Claims that go well, on the average, before half as many candidates are looked at: not each, or the others would be
/// forgotten at once and met again.
const MEMORY: u32 = 16;
/// The shortest pause before a claimer who found nothing looks again without having heard of anything.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// The longest; how often the user wants it at least is seen to by the listener.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After news that were none to a claimer it looks again at once, and then less and less soon, up to this: a collection
/// in which much happens that does not concern it is not searched without a break.
const LONGEST_GAP: Duration = Duration::from_millis(64);

/// What one claim asks for.
pub struct Claim {
    /// Which documents.
    pub query: Query,
    /// How many of them at most.
    pub limit: usize,
    /// For how long they are to be locked.
    pub duration_ms: i64,
    /// Whether, and on which terms, the locks are kept alive.
    pub terms: Option<Terms>,
}

/// How much company the claims on one collection have: the more, the more candidates they choose from.
pub struct Crowd {
    width: AtomicU32,
    share: AtomicU32,
}

impl Default for Crowd {
    fn default() -> Self {
        Self { width: AtomicU32::new(1), share: AtomicU32::new(random(WIDEST)) }
    }
}

impl Crowd {
    fn width(&self) -> usize {
        self.width.load(Ordering::Relaxed) as usize
    }

    /// Notes how many of the chosen documents were had; the others were another's by then.
    fn note(&self, locked: usize, chosen: usize) {
        let width = self.width.load(Ordering::Relaxed);
        if locked < chosen {
            // Whoever was faster keeps his share, so that sooner or later each has one of his own.
            if locked <= chosen / 2 {
                self.share.store(random(WIDEST), Ordering::Relaxed);
            }
            self.width.store((width * 4).min(WIDEST), Ordering::Relaxed);
        } else if random(MEMORY) == 0 {
            self.width.store((width / 2).max(1), Ordering::Relaxed);
        }
    }

    /// Those of the candidates that this claimer takes, in their order: as many as are wanted, of its own share first and
    /// then of the next ones, so that no document is left out because nobody has its share.
    fn choose(&self, candidates: Vec<Bson>, wanted: usize) -> Vec<Bson> {
        if candidates.len() <= wanted {
            return candidates;
        }
        let shares = self.width.load(Ordering::Relaxed);
        let own = self.share.load(Ordering::Relaxed);
        let distance = |id: &Bson| (hash(id) % WIDEST).wrapping_sub(own) % shares;
        let mut ranked: Vec<_> = candidates.into_iter().enumerate().collect();
        ranked.sort_by_cached_key(|(_, id)| distance(id));
        ranked.truncate(wanted);
        ranked.sort_unstable_by_key(|(place, _)| *place);
        ranked.into_iter().map(|(_, id)| id).collect()
    }
}

/// FNV-1a of the value as BSON: the same in every process and version.
/// Source: <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>.
fn hash(id: &Bson) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    bytes(Some(id)).into_iter().fold(0x811c_9dc5, step)
}

/// The value as BSON: values of equal types and contents have equal bytes.
fn bytes(id: Option<&Bson>) -> Vec<u8> {
    doc! { "": id.cloned() }.to_vec().unwrap_or_default()
}

/// Documents that are locked with this lease, perhaps, and that nobody waits for.
struct Leftover {
    lease: ObjectId,
    ids: Vec<Bson>,
}

/// Claims, and while there is nothing, waits; replies with what was won.
pub async fn claim<A: Replying<Vec<Locked>>>(
    collection: &Collection,
    claim: &Claim,
    patience: Option<&Patience>,
    mut reply: Reply<Vec<Locked>, A>,
) {
    let over = async {
        match patience {
            Some(patience) => collection.over(patience).await,
            None => pending().await,
        }
    };
    tokio::pin!(over);
    let mut listener = None;
    let (mut pause, mut gap) = (SHORTEST_PAUSE, Duration::ZERO);
    for attempt in 0_u32.. {
        let call = collection.begin();
        let mut leftover = Leftover { lease: ObjectId::new(), ids: Vec::new() };
        let work = take(collection, claim, &call, &mut leftover);
        // However short the patience: what is free is had.
        let outcome = match (attempt, patience) {
            (0, Some(patience)) => {
                let cancelled = async {
                    patience.cancelled().await;
                    Ok(Vec::new())
                };
                call.to_its_end(work, cancelled, &mut reply).await
            }
            _ => call.to_its_end(work, &mut over, &mut reply).await,
        };
        match outcome {
            (Ok(locked), true) if locked.is_empty() => match patience {
                Some(patience) if !patience.is_over() => {}
                _ => return reply.give(Ok(locked)),
            },
            (Ok(locked), true) => match collection.keep(&locked, claim.terms) {
                Ok(()) => return reply.give(Ok(locked)),
                Err(error) => {
                    reply.give(Err(error));
                    return forget(collection, &leftover, claim.duration_ms).await;
                }
            },
            (outcome, in_time) => {
                if let (Err(error), true) = (outcome, in_time) {
                    reply.give(Err(error));
                }
                return forget(collection, &leftover, claim.duration_ms).await;
            }
        }
        if listener.is_none() {
            match collection.listen() {
                Ok(begun) => listener = Some(begun),
                Err(error) => return reply.give(Err(error)),
            }
        }
        let Some(listener) = &mut listener else { return };
        pause = jittered(pause * 3).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        let heard = async {
            sleep(gap).await;
            let quiet = Instant::now();
            listener.news(pause).await;
            quiet.elapsed()
        };
        gap = tokio::select! {
            quiet = heard => if quiet > LONGEST_GAP { Duration::ZERO } else { longer(gap) },
            end = &mut over => return reply.give(end),
        };
    }
}

/// The next gap between two looks, after one that was for nothing.
fn longer(gap: Duration) -> Duration {
    (gap * 2).clamp(Duration::from_millis(1), LONGEST_GAP)
}

/// Locks up to as many documents as are wanted. `leftover` gets what it may have locked.
async fn take(
    collection: &Collection,
    claim: &Claim,
    call: &Call,
    leftover: &mut Leftover,
) -> Result<Vec<Locked>, Error> {
    if claim.limit == 1 {
        return take_one(collection, claim, call, leftover).await;
    }
    let mut won = 0;
    let mut sent = None;
    while won < claim.limit {
        let wanted = claim.limit - won;
        let (chosen, are_all) = candidates(collection, claim, wanted, call).await?;
        if chosen.is_empty() {
            break;
        }
        leftover.ids.extend_from_slice(&chosen);
        // The belief in all of them counts from before the first was asked for.
        sent.get_or_insert_with(Moment::now);
        let (locked, in_doubt) = lock_all(collection, claim, &chosen, leftover.lease, call).await?;
        won += locked;
        let contested = locked < chosen.len();
        collection.crowd().note(locked, chosen.len());
        // Where an attempt's answer was lost nobody knows how many there are: better too few than too many.
        if in_doubt || (are_all && !contested) || call.is_over() {
            break;
        }
    }
    match sent {
        Some(sent) => read_back(collection, claim, leftover, sent, call).await,
        None => Ok(Vec::new()),
    }
}

/// One document takes two commands instead of three.
async fn take_one(
    collection: &Collection,
    claim: &Claim,
    call: &Call,
    leftover: &mut Leftover,
) -> Result<Vec<Locked>, Error> {
    loop {
        let (chosen, _) = candidates(collection, claim, 1, call).await?;
        let Some(id) = chosen.into_iter().next() else { return Ok(Vec::new()) };
        let subject = Subject {
            key: doc! { "_id": id.clone() },
            set: claim.query.set.clone(),
            filter: Some(claim.query.filter.clone()),
            collation: claim.query.collation.clone(),
        };
        match collection.acquire(&subject, claim.duration_ms, call).await {
            Ok(Some(locked)) => {
                collection.crowd().note(1, 1);
                *leftover = Leftover { lease: locked.lease.hold().lease, ids: vec![id] };
                return Ok(vec![locked]);
            }
            Ok(None) => {
                collection.crowd().note(0, 1);
                if call.is_over() {
                    return Ok(Vec::new());
                }
            }
            Err(Failed { error, leftover: lease }) => {
                if let Some(lease) = lease {
                    *leftover = Leftover { lease, ids: vec![id] };
                }
                return Err(error);
            }
        }
    }
}

/// Up to `wanted` documents that are free, chosen from those that come first; tells too whether there are no others.
async fn candidates(
    collection: &Collection,
    claim: &Claim,
    wanted: usize,
    call: &Call,
) -> Result<(Vec<Bson>, bool), Error> {
    let width = match collection.crowd().width() {
        1 => wanted,
        // Shares are not of one size: a quarter more, or half of them would have to be filled up from another's.
        width => width * wanted * 5 / 4,
    };
    let target = collection.target();
    let mut reply =
        send(collection, call, |ms| target.candidates(&claim.query, width, ms)).await?.0;
    let found = reply
        .get_document_mut("cursor")
        .and_then(|cursor| cursor.get_array_mut("firstBatch").map(std::mem::take))
        .unwrap_or_default();
    let ids: Vec<Bson> = found
        .into_iter()
        .filter_map(|found| match found {
            Bson::Document(mut document) => document.remove("_id"),
            _ => None,
        })
        .collect();
    let are_all = ids.len() < width && ids.len() <= wanted;
    Ok((collection.crowd().choose(ids, wanted), are_all))
}

/// Locks those that are still free; tells how many, and whether an earlier attempt may have locked some too.
async fn lock_all(
    collection: &Collection,
    claim: &Claim,
    ids: &[Bson],
    lease: ObjectId,
    call: &Call,
) -> Result<(usize, bool), Error> {
    let Claim { query, duration_ms, .. } = claim;
    let target = collection.target();
    let command = |ms| target.claim(query, ids, lease, *duration_ms, ms);
    let (reply, in_doubt) = send(collection, call, command).await?;
    let locked = reply.get_i32("n").map_or_else(|_| reply.get_i64("n").unwrap_or(0), i64::from);
    Ok((usize::try_from(locked).unwrap_or(0), in_doubt))
}

/// Reads what was won, in the order of the query.
async fn read_back(
    collection: &Collection,
    claim: &Claim,
    Leftover { lease, ids }: &Leftover,
    sent: Moment,
    call: &Call,
) -> Result<Vec<Locked>, Error> {
    let target = collection.target();
    let found = loop {
        let command = target.claimed(ids, *lease, claim.duration_ms, call.milliseconds_left());
        match collection.find(command).await {
            Ok(found) => break found,
            Err(error) => call.pause_after(error).await?,
        }
    };
    // Found by their `_id`s, they have just the types that the candidates had.
    let order: HashMap<Vec<u8>, usize> =
        ids.iter().enumerate().map(|(place, id)| (bytes(Some(id)), place)).collect();
    let mut locked: Vec<(usize, Locked)> = found
        .into_iter()
        .map(|document| (order.get(&bytes(document.get("_id"))).copied(), document))
        .map(|(place, mut document)| {
            let record = target.take_record(&mut document);
            let lease = Arc::new(Lease::granted(*lease, record, sent, claim.duration_ms));
            (place.unwrap_or(usize::MAX), Locked { document, lease })
        })
        .collect();
    locked.sort_by_key(|(place, _)| *place);
    Ok(locked.into_iter().map(|(_, locked)| locked).collect())
}

/// Sends until there is an answer; tells too whether an earlier attempt may have been applied.
async fn send(
    collection: &Collection,
    call: &Call,
    command: impl Fn(i64) -> Document,
) -> Result<(Document, bool), Error> {
    let mut in_doubt = false;
    loop {
        match collection.run(&command(call.milliseconds_left())).await {
            Ok(reply) => return Ok((reply, in_doubt)),
            Err(error) => {
                call.pause_after(error).await?;
                in_doubt = true;
            }
        }
    }
}

/// Releases what nobody has got.
async fn forget(collection: &Collection, Leftover { lease, ids }: &Leftover, duration_ms: i64) {
    if ids.is_empty() {
        return;
    }
    let holds: Vec<_> = ids.iter().map(|id| (id.clone(), *lease)).collect();
    let target = collection.target();
    collection.send_in_background(duration_ms, |ms| target.release_all(&holds, ms)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_makes_room_and_its_absence_takes_it_back() {
        let crowd = Crowd::default();
        assert_eq!(crowd.width(), 1);
        for _ in 0..10 {
            crowd.note(0, 1);
        }
        assert_eq!(crowd.width(), WIDEST as usize);
        for _ in 0..2000 {
            crowd.note(1, 1);
        }
        assert_eq!(crowd.width(), 1);
    }

    fn crowd(width: u32, share: u32) -> Crowd {
        Crowd { width: AtomicU32::new(width), share: AtomicU32::new(share) }
    }

    fn numbers(count: i32) -> Vec<Bson> {
        (0..count).map(Bson::Int32).collect()
    }

    #[test]
    fn one_that_is_alone_takes_the_first() {
        assert_eq!(crowd(1, 5).choose(numbers(10), 4), numbers(4));
    }

    #[test]
    fn claimers_with_shares_of_their_own_do_not_meet() {
        let taken: Vec<_> =
            (0..16).flat_map(|share| crowd(16, share).choose(numbers(1600), 50)).collect();
        let different: std::collections::HashSet<_> = taken.iter().map(Bson::as_i32).collect();
        assert_eq!((taken.len(), different.len()), (800, 800));
    }

    #[test]
    fn a_share_that_is_too_small_is_filled_from_the_next_ones() {
        let chosen = crowd(16, 3).choose(numbers(20), 19);
        assert_eq!(chosen.len(), 19);
        assert!(chosen.is_sorted_by_key(Bson::as_i32), "in the order of the query");
        assert_eq!(crowd(4, 0).choose(numbers(3), 5), numbers(3));
    }

    #[test]
    fn gaps_grow_from_nothing_to_their_longest() {
        let gaps: Vec<_> = std::iter::successors(Some(Duration::ZERO), |gap| Some(longer(*gap)))
            .take(100)
            .collect();
        assert!(gaps.is_sorted());
        assert_eq!(gaps[1], Duration::from_millis(1));
        assert_eq!(gaps[99], LONGEST_GAP);
    }
}

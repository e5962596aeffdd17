//! Whose turn it is when several processes wait for a document. No I/O and no timer: it only says which pause is due.
//!
//! [`Turns`] keep a process from handing a document round among its own callers for ever: they are always faster to hear of
//! a release than other processes are. A turn begins with a release of ours and goes on with each further one, until
//! somebody else has the document.
//!
//! [`Crowds`] keep processes that hear of a release at the same moment from trying all at once, when one can win.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::chance::random;

/// For so long a document may go from one to the next within this process before others get a chance to be first.
const ROUND: Duration = Duration::from_millis(100);
/// That chance: longer than the news of a release takes to reach them.
const CHANCE: Duration = Duration::from_millis(16);
/// The same where there is no news: somebody who looks now and then is likely to look by then, if there are many.
const LONG_CHANCE: Duration = Duration::from_millis(48);
/// Turns that are older than this are over, whatever became of them.
const FORGOTTEN: Duration = Duration::from_secs(1);
/// At so many turns at the least, those that are over are looked for.
const MANY: usize = 1024;

struct Turn {
    since: Instant,
    released: Instant,
}

/// The documents that this process has released lately.
pub struct Turns {
    turns: HashMap<Vec<u8>, Turn>,
    full: usize,
}

impl Default for Turns {
    fn default() -> Self {
        Self { turns: HashMap::new(), full: MANY }
    }
}

impl Turns {
    /// Notes that this process has released the document.
    pub fn released(&mut self, key: Vec<u8>) {
        if self.turns.len() >= self.full {
            self.turns.retain(|_, turn| turn.released.elapsed() < FORGOTTEN);
            self.full = MANY.max(2 * self.turns.len());
        }
        let now = Instant::now();
        self.turns.entry(key).or_insert(Turn { since: now, released: now }).released = now;
    }

    /// The pause that is due before this process tries to lock the document again, if there is one; longer if others have
    /// no news of releases. It ends the turn.
    pub fn pause(&mut self, key: &[u8], has_news: bool) -> Option<Duration> {
        let chance = if has_news { CHANCE } else { LONG_CHANCE };
        let Turn { since, released } = self.turns.get(key)?;
        let is_chance_gone = released.elapsed() >= chance;
        let is_round_over = since.elapsed() >= ROUND;
        if is_chance_gone || is_round_over {
            self.end(key);
        }
        (is_round_over && !is_chance_gone).then_some(chance)
    }

    /// Notes that somebody else has the document.
    pub fn end(&mut self, key: &[u8]) {
        self.turns.remove(key);
    }
}

/// By how much those who hear of a release stand apart on the average: about as long as a lock takes, so that most of
/// them have not tried in vain before they hear of the next one.
const APART: Duration = Duration::from_millis(3);
/// The largest crowd that is reckoned with.
const LARGEST: u32 = 50;

/// How often others have lately been faster, each time that a document was waited for; where it was never, there is none.
#[derive(Default)]
pub struct Crowds {
    losses: HashMap<Vec<u8>, u32>,
}

impl Crowds {
    /// The pause that is due before a try, for one who has heard of so many releases in vain: a random one, shorter for
    /// those who have waited for long.
    pub fn pause(&self, key: &[u8], releases: u32) -> Duration {
        match self.losses.get(key).copied() {
            Some(crowd) => APART * crowd * crowd / (crowd + releases) * random(1001) / 1000,
            None => Duration::ZERO,
        }
    }

    /// Notes how many tries were in vain until the document was had.
    pub fn note(&mut self, key: &[u8], losses: u32) {
        let before = self.losses.get(key).copied().unwrap_or(0);
        match u32::midpoint(before, losses.min(LARGEST)) {
            0 => {
                self.losses.remove(key);
            }
            crowd => {
                if self.losses.len() >= MANY {
                    self.losses.clear();
                }
                self.losses.insert(key.to_vec(), crowd);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_due_after_a_round_without_a_break() {
        let (mut turns, key) = (Turns::default(), vec![1]);
        assert_eq!(turns.pause(&key, true), None, "nothing was released");
        for _ in 0..10 {
            turns.released(key.clone());
            assert_eq!(turns.pause(&key, true), None);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        turns.released(key.clone());
        assert_eq!(turns.pause(&key, true), Some(CHANCE));
        turns.released(key.clone());
        assert_eq!(turns.pause(&key, true), None, "a new turn");
        tokio::time::advance(ROUND).await;
        turns.released(key.clone());
        assert_eq!(turns.pause(&key, false), Some(LONG_CHANCE));
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_due_when_others_have_had_their_chance() {
        let (mut turns, key) = (Turns::default(), vec![1]);
        turns.released(key.clone());
        tokio::time::advance(ROUND).await;
        assert_eq!(turns.pause(&key, true), None, "it was free all the while");
        turns.released(key.clone());
        tokio::time::advance(ROUND).await;
        turns.end(&key);
        turns.released(key.clone());
        assert_eq!(turns.pause(&key, true), None, "another had it");
    }

    #[tokio::test(start_paused = true)]
    async fn old_turns_are_forgotten() {
        let mut turns = Turns::default();
        for number in 0..10_000_u32 {
            turns.released(number.to_le_bytes().to_vec());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(turns.turns.len() <= 2 * MANY, "{}", turns.turns.len());
    }

    #[test]
    fn a_crowd_stands_back_and_is_forgotten_when_it_is_gone() {
        let (mut crowds, key) = (Crowds::default(), vec![1]);
        crowds.note(&key, 1);
        assert_eq!(crowds.pause(&key, 1), Duration::ZERO, "one loss is none");
        for _ in 0..10 {
            crowds.note(&key, 20);
        }
        let longest = |releases| (0..200).map(|_| crowds.pause(&key, releases)).max();
        assert!(longest(0) > Some(APART * 10) && longest(0) <= Some(APART * 20));
        assert!(longest(200) <= Some(APART * 2), "who has waited for long comes first");
        for _ in 0..10 {
            crowds.note(&key, 0);
        }
        assert!(crowds.losses.is_empty());
    }
}

//! Chance, so that those who fail, poll or compete at the same moment do not go on doing so.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Half of the pause to all of it, at random: those that failed together do not come back together.
pub fn jittered(pause: Duration) -> Duration {
    pause / 2 + pause / 2 * random(1001) / 1000
}

/// A random number below `limit`; none too good.
pub fn random(limit: u32) -> u32 {
    let number = RandomState::new().hash_one(0_u8) % u64::from(limit.max(1));
    u32::try_from(number).unwrap_or(0)
}

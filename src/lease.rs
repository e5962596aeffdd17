//! One held lock as this process believes it to be: its lease, its deadline and its state.
//!
//! The client's belief is always the shorter one. The deadline is counted from before the first attempt was sent, on
//! a monotonic clock that goes on while the machine is suspended, so it passes before the server lets another in.
//! Reads are lock-free; nothing here does I/O.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::command::Hold;

/// A moment on a clock that never jumps and that counts suspended time too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// The present moment.
    #[cfg(unix)]
    pub fn now() -> Self {
        // CLOCK_MONOTONIC stands still during suspend on Linux; on Apple's systems CLOCK_MONOTONIC_RAW does not.
        // See clock_gettime(2) and clock_gettime(3) there.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
        #[cfg(target_vendor = "apple")]
        const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC_RAW;
        #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
        const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;

        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid, writable timespec for the whole call.
        unsafe { libc::clock_gettime(CLOCK, &raw mut time) };
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// The present moment. `Instant` counts suspended time on Windows (`QueryPerformanceCounter`).
    #[cfg(not(unix))]
    pub fn now() -> Self {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        let elapsed = START.get_or_init(std::time::Instant::now).elapsed();
        Self(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// This moment and `duration_ms` more; the end of time if that is beyond it.
    pub fn plus_ms(self, duration_ms: i64) -> Self {
        let nanos = u64::try_from(duration_ms).unwrap_or(0).saturating_mul(1_000_000);
        Self(self.0.saturating_add(nanos))
    }

    /// The deadline of a lock of `duration_ms` whose command was sent at this moment. The server cuts its `$$NOW` to whole
    /// milliseconds, so its lock may end up to one earlier than the duration after the command came in.
    pub fn deadline(self, duration_ms: i64) -> Self {
        self.plus_ms(duration_ms.saturating_sub(1))
    }

    /// How long it is from `earlier` to this moment; zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What has become of an acquisition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// Held, for as long as the deadline has not passed.
    Held = 0,
    /// A release is on its way, or its outcome is not known: others may be let in at any time.
    Releasing = 1,
    /// Released by us.
    Released = 2,
    /// The server said that the lock is not ours any more.
    Lost = 3,
}

/// One acquisition of one document's lock.
#[derive(Debug)]
pub struct Lease {
    hold: Hold,
    deadline: AtomicU64,
    standing: AtomicU8,
    /// Held across a command about this lease: one is in flight at a time.
    turn: Mutex<()>,
}

impl Lease {
    /// A lease that the server has granted, held until `deadline` at the latest.
    pub fn new(hold: Hold, deadline: Moment) -> Self {
        Self {
            hold,
            deadline: AtomicU64::new(deadline.0),
            standing: AtomicU8::new(Standing::Held as u8),
            turn: Mutex::new(()),
        }
    }

    /// The acquisition's identity, as it is stored in the document.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Waits until no other command about this lease is in flight.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The moment from which on the lock is not to be relied on.
    pub fn deadline(&self) -> Moment {
        Moment(self.deadline.load(Ordering::Acquire))
    }

    /// Moves the deadline; never to an earlier moment.
    pub fn prolong(&self, deadline: Moment) {
        self.deadline.fetch_max(deadline.0, Ordering::AcqRel);
    }

    /// What has become of it, the deadline apart.
    pub fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) {
            0 => Standing::Held,
            1 => Standing::Releasing,
            2 => Standing::Released,
            _ => Standing::Lost,
        }
    }

    /// Notes what has become of it.
    pub fn set_standing(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Release);
    }

    /// How long the lock is held from `now` on, at least; zero when it is not held.
    pub fn remaining(&self, now: Moment) -> Duration {
        if self.standing() == Standing::Held { self.deadline().since(now) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use bson::oid::ObjectId;

    use super::*;

    fn hold() -> Hold {
        Hold { lease: ObjectId::new(), token: None }
    }

    #[test]
    fn a_lease_is_held_up_to_its_deadline_and_not_a_moment_longer() {
        let start = Moment::now();
        let lease = Lease::new(hold(), start.plus_ms(10));
        assert_eq!(lease.remaining(start), Duration::from_millis(10));
        assert_eq!(lease.remaining(start.plus_ms(9)), Duration::from_millis(1));
        assert_eq!(lease.remaining(start.plus_ms(10)), Duration::ZERO);
        assert_eq!(lease.remaining(start.plus_ms(11)), Duration::ZERO);
    }

    #[test]
    fn a_deadline_only_moves_forward() {
        let start = Moment::now();
        let lease = Lease::new(hold(), start.plus_ms(10));
        lease.prolong(start.plus_ms(5));
        assert_eq!(lease.deadline(), start.plus_ms(10));
        lease.prolong(start.plus_ms(20));
        assert_eq!(lease.deadline(), start.plus_ms(20));
    }

    #[test]
    fn what_is_being_released_or_lost_is_not_held() {
        let start = Moment::now();
        let lease = Lease::new(hold(), start.plus_ms(1000));
        for standing in [Standing::Releasing, Standing::Released, Standing::Lost] {
            lease.set_standing(standing);
            assert_eq!(lease.remaining(start), Duration::ZERO);
        }
        lease.set_standing(Standing::Held);
        assert!(lease.remaining(start) > Duration::ZERO);
    }

    #[test]
    fn a_deadline_allows_for_the_servers_whole_milliseconds() {
        let sent = Moment::now();
        assert_eq!(sent.deadline(10), sent.plus_ms(9));
        assert_eq!(sent.deadline(0), sent);
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        assert!(Moment::now().plus_ms(i64::MAX) > Moment::now());
        assert!(Moment::now().plus_ms(-1) <= Moment::now());
    }
}

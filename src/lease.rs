//! One held lock as this process believes it to be: its lease, its deadline and its state.
//!
//! The client's belief is always the shorter one. The deadline is counted from before the first attempt was sent, on
//! a monotonic clock that goes on while the machine is suspended, so it passes before the server lets another in.
//! Reads are lock-free; nothing here does I/O.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bson::{DateTime, oid::ObjectId};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use crate::command::{Hold, Record};

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

/// Why a lock was lost, or will be when its deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Its time was up.
    Expired = 0,
    /// Another has taken it.
    TakenOver = 1,
    /// The document is gone.
    Deleted = 2,
    /// It could not be renewed in time.
    Unreachable = 3,
    /// It was renewed for as long as it may be.
    MaxHold = 4,
    /// The event loop had not turned for too long.
    MaxStall = 5,
}

impl Reason {
    /// The reason's name, as users read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::TakenOver => "taken over",
            Self::Deleted => "document deleted",
            Self::Unreachable => "unreachable",
            Self::MaxHold => "maxHold",
            Self::MaxStall => "maxStall",
        }
    }
}

/// What to do when the server says that a lock is lost.
type OnLoss = Box<dyn Fn() + Send + Sync>;

/// One acquisition of one document's lock.
pub struct Lease {
    hold: Hold,
    since: DateTime,
    /// Milliseconds since 1970, by the server's clock.
    until_ms: AtomicI64,
    began: Moment,
    deadline: AtomicU64,
    standing: AtomicU8,
    reason: AtomicU8,
    /// Whoever asked for it knows that he has it.
    taken: AtomicBool,
    take: Notify,
    /// Nobody can ask about it any more.
    abandoned: AtomicBool,
    on_loss: OnceLock<OnLoss>,
    /// Held across a command about this lease: one is in flight at a time.
    turn: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("hold", &self.hold)
            .field("standing", &self.standing())
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// A lease that the server has granted for `duration_ms`, as it wrote down; asked for at `sent`.
    pub fn granted(lease: ObjectId, record: Record, sent: Moment, duration_ms: i64) -> Self {
        let hold = Hold { lease, token: Some(record.token) };
        let granted = Self::new(hold, sent, sent.deadline(duration_ms));
        granted.set_until(record.until);
        Self { since: record.since, ..granted }
    }

    /// A lease that was asked for at `began` and is held until `deadline` at the latest.
    pub fn new(hold: Hold, began: Moment, deadline: Moment) -> Self {
        Self {
            hold,
            since: DateTime::from_millis(0),
            until_ms: AtomicI64::new(0),
            began,
            deadline: AtomicU64::new(deadline.0),
            standing: AtomicU8::new(Standing::Held as u8),
            reason: AtomicU8::new(Reason::Expired as u8),
            taken: AtomicBool::new(false),
            take: Notify::new(),
            abandoned: AtomicBool::new(false),
            on_loss: OnceLock::new(),
            turn: Arc::default(),
        }
    }

    /// The acquisition's identity, as it is stored in the document.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// When it was acquired, by the server's clock.
    pub fn since(&self) -> DateTime {
        self.since
    }

    /// When the lock ends, by the server's clock, as it was last told.
    pub fn until(&self) -> DateTime {
        DateTime::from_millis(self.until_ms.load(Ordering::Acquire))
    }

    /// Notes when the lock ends.
    pub fn set_until(&self, until: DateTime) {
        self.until_ms.store(until.timestamp_millis(), Ordering::Release);
    }

    /// The moment before it was asked for.
    pub fn began(&self) -> Moment {
        self.began
    }

    /// Waits until no other command about this lease is in flight.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// The turn, if no other command about this lease is in flight.
    pub fn try_turn(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.turn).try_lock_owned().ok()
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

    /// Notes that the lock is lost, and tells whoever watches it.
    pub fn lose(&self, reason: Reason) {
        self.set_reason(reason);
        self.set_standing(Standing::Lost);
        if let Some(on_loss) = self.on_loss.get() {
            on_loss();
        }
    }

    /// Why it is lost, or will be when its deadline passes.
    pub fn reason(&self) -> Reason {
        match self.reason.load(Ordering::Acquire) {
            0 => Reason::Expired,
            1 => Reason::TakenOver,
            2 => Reason::Deleted,
            3 => Reason::Unreachable,
            4 => Reason::MaxHold,
            _ => Reason::MaxStall,
        }
    }

    /// Notes why it will be lost unless it is renewed after all.
    pub fn set_reason(&self, reason: Reason) {
        self.reason.store(reason as u8, Ordering::Release);
    }

    /// Has `on_loss` called, from any thread, when the server says that the lock is lost. The first watcher stays.
    pub fn watch(&self, on_loss: impl Fn() + Send + Sync + 'static) {
        // Only one is ever asked for: a second would be a defect, and the first keeps its promise.
        let _ = self.on_loss.set(Box::new(on_loss));
    }

    /// Notes that the answer has come to whoever asked for it.
    pub fn take(&self) {
        self.taken.store(true, Ordering::Release);
        self.take.notify_waiters();
    }

    /// Whether the answer has come to whoever asked for it.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    /// Ends when the answer has come to whoever asked for it.
    pub async fn taken(&self) {
        let take = self.take.notified();
        if !self.is_taken() {
            take.await;
        }
    }

    /// Notes that nobody can ask about it any more: it is not worth renewing.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Whether somebody still holds on to it.
    pub fn is_wanted(&self) -> bool {
        self.standing() == Standing::Held && !self.abandoned.load(Ordering::Acquire)
    }

    /// How long the lock is held from `now` on, at least; zero when it is not held.
    pub fn remaining(&self, now: Moment) -> Duration {
        if self.standing() == Standing::Held { self.deadline().since(now) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold() -> Hold {
        Hold { lease: ObjectId::new(), token: None }
    }

    #[test]
    fn a_lease_is_held_up_to_its_deadline_and_not_a_moment_longer() {
        let start = Moment::now();
        let lease = Lease::new(hold(), start, start.plus_ms(10));
        assert_eq!(lease.remaining(start), Duration::from_millis(10));
        assert_eq!(lease.remaining(start.plus_ms(9)), Duration::from_millis(1));
        assert_eq!(lease.remaining(start.plus_ms(10)), Duration::ZERO);
        assert_eq!(lease.remaining(start.plus_ms(11)), Duration::ZERO);
    }

    #[test]
    fn a_deadline_only_moves_forward() {
        let start = Moment::now();
        let lease = Lease::new(hold(), start, start.plus_ms(10));
        lease.prolong(start.plus_ms(5));
        assert_eq!(lease.deadline(), start.plus_ms(10));
        lease.prolong(start.plus_ms(20));
        assert_eq!(lease.deadline(), start.plus_ms(20));
    }

    #[test]
    fn what_is_being_released_or_lost_is_not_held() {
        let start = Moment::now();
        let lease = Lease::new(hold(), start, start.plus_ms(1000));
        for standing in [Standing::Releasing, Standing::Released, Standing::Lost] {
            lease.set_standing(standing);
            assert_eq!(lease.remaining(start), Duration::ZERO);
        }
        lease.set_standing(Standing::Held);
        assert!(lease.remaining(start) > Duration::ZERO);
    }

    #[test]
    fn a_loss_is_told_once_and_with_its_reason() {
        let start = Moment::now();
        let lease = Lease::new(hold(), start, start.plus_ms(1000));
        let told = Arc::new(AtomicU8::new(0));
        let counter = Arc::clone(&told);
        lease.watch(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        lease.lose(Reason::Deleted);
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert_eq!(lease.reason().name(), "document deleted");
        assert!(!lease.is_wanted());
    }

    #[test]
    fn one_command_at_a_time_has_the_turn() {
        let lease = Lease::new(hold(), Moment::now(), Moment::now());
        let turn = lease.try_turn();
        assert!(turn.is_some() && lease.try_turn().is_none());
        drop(turn);
        assert!(lease.try_turn().is_some());
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

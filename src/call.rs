//! One call of the user's: when it must be answered, that it is answered once, and when it is worth another attempt.

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::chance::jittered;
use crate::error::Error;

/// How long calls in flight may still take once their client is being closed.
pub const GRACE: Duration = Duration::from_secs(1);
/// The first pause before a command is sent again, and the longest; both are shortened at random.
pub const FIRST_PAUSE: Duration = Duration::from_millis(10);
pub const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The driver's own time-outs are let through first: they say more than ours.
const SLACK: Duration = Duration::from_millis(200);

/// The answer to a call: `None` of a lock, no document of a claim, mean that nothing could be had.
pub trait Replying<T>: FnOnce(Result<T, Error>) + Send {}

impl<T, F: FnOnce(Result<T, Error>) + Send> Replying<T> for F {}

/// Answers a call, once.
pub struct Reply<T, A: Replying<T>>(Option<A>, PhantomData<fn(T)>);

impl<T, A: Replying<T>> Reply<T, A> {
    /// With this answer.
    pub fn new(answer: A) -> Self {
        Self(Some(answer), PhantomData)
    }

    /// Answers, unless that was done before.
    pub fn give(&mut self, result: Result<T, Error>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

/// One call of the user's: when it must be answered, and what went wrong last.
pub struct Call {
    began: Instant,
    ends: Instant,
    closing: watch::Receiver<bool>,
    trouble: Mutex<Trouble>,
}

struct Trouble {
    last: Option<Error>,
    pause: Duration,
}

impl Call {
    /// Begins to count: `limit` is the time in which it must be answered, `closing` tells that its client is being closed.
    pub fn begin(limit: Duration, closing: watch::Receiver<bool>) -> Self {
        let began = Instant::now();
        let trouble = Mutex::new(Trouble { last: None, pause: FIRST_PAUSE });
        Self { began, ends: began + limit, closing, trouble }
    }

    /// Lets `work` run to its end. Replies with what `cut` comes to, or that the time is up, if that comes first; tells too
    /// whether it did not.
    pub async fn to_its_end<W, T, A: Replying<T>>(
        &self,
        work: impl Future<Output = W>,
        cut: impl Future<Output = Result<T, Error>>,
        reply: &mut Reply<T, A>,
    ) -> (W, bool) {
        tokio::pin!(work, cut);
        let early = tokio::select! {
            done = &mut work => return (done, true),
            error = self.cut_short() => Err(error),
            result = cut => result,
        };
        reply.give(early);
        (work.await, false)
    }

    /// Whether the caller has been answered by now, come what may.
    pub fn is_over(&self) -> bool {
        *self.closing.borrow() || self.is_late()
    }

    /// Whether its time is up.
    pub fn is_late(&self) -> bool {
        self.ends <= Instant::now()
    }

    /// The time that a command may take on the server. At least 1: to the server 0 means no limit.
    pub fn milliseconds_left(&self) -> i64 {
        let left = self.ends.saturating_duration_since(Instant::now()).as_millis();
        i64::try_from(left).unwrap_or(i64::MAX).clamp(1, i64::from(i32::MAX))
    }

    /// Waits before the next attempt. Gives the error back if another attempt is of no use or too late.
    pub async fn pause_after(&self, error: Error) -> Result<(), Error> {
        if !error.is_passing() || *self.closing.borrow() {
            return Err(error);
        }
        let pause = {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.last = Some(error.clone());
            let pause = trouble.pause;
            trouble.pause = (pause * 2).min(LONGEST_PAUSE);
            jittered(pause)
        };
        if Instant::now() + pause >= self.ends {
            return Err(error);
        }
        sleep(pause).await;
        Ok(())
    }

    /// Ends when the caller must be answered, come what may.
    pub async fn cut_short(&self) -> Error {
        let mut closing = self.closing.clone();
        let closed = async {
            // The sender lives as long as the store, so this ends with a change only.
            let _ = closing.wait_for(|closing| *closing).await;
            sleep(GRACE).await;
        };
        tokio::select! {
            () = sleep_until(self.ends + SLACK) => self.time_out(),
            () = closed => Error::Closed,
        }
    }

    /// What went wrong last says more than that the time is up.
    pub fn time_out(&self) -> Error {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble
            .last
            .clone()
            .unwrap_or_else(|| Error::TimedOut { after_ms: (self.ends - self.began).as_millis() })
    }
}

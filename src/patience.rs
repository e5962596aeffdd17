//! How long a caller is willing to wait: until a moment, or until he says that he is not any more.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

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

#[cfg(test)]
mod tests {
    use super::*;

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

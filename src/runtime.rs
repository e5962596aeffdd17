//! The threads that everything native runs on: two runtimes for the process, made at first use, never shut down.
//!
//! Environments (worker threads) come and go; the driver's monitors and a release that nobody waits for any more
//! must outlive the one that started them. The threads do not keep the process alive.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};

use crate::error::Error;

/// With fewer processors than these a second thread for calls costs more than it brings: each call would wake both.
const PROCESSORS_FOR_TWO: usize = 4;

struct Runtimes {
    calls: Runtime,
    aside: Runtime,
}

/// The runtime of the calls. One thread drives thousands of them: they wait for the server.
pub fn calls() -> Result<&'static Runtime, Error> {
    runtimes().map(|runtimes| &runtimes.calls)
}

/// The runtime of what goes on beside the calls: locks that are kept alive, news of releases. It never waits for a burst of
/// them, nor for the handshakes of their connections.
pub fn aside() -> Result<&'static Runtime, Error> {
    runtimes().map(|runtimes| &runtimes.aside)
}

/// Starts a task beside the calls.
pub fn spawn_aside(task: impl Future<Output = ()> + Send + 'static) {
    // Without a runtime there is no client, and nothing to do either.
    if let Ok(aside) = aside() {
        aside.spawn(task);
    }
}

fn runtimes() -> Result<&'static Runtimes, Error> {
    static RUNTIMES: OnceLock<Result<Runtimes, Arc<io::Error>>> = OnceLock::new();
    RUNTIMES
        .get_or_init(|| {
            let processors = available_parallelism().map_or(1, usize::from);
            let threads = if processors < PROCESSORS_FOR_TWO { 1 } else { 2 };
            let calls = start("lock-release", threads)?;
            Ok(Runtimes { calls, aside: start("lock-keeper", 1)? })
        })
        .as_ref()
        .map_err(|error| Error::System(Arc::clone(error)))
}

fn start(name: &str, threads: usize) -> Result<Runtime, Arc<io::Error>> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads).thread_name(name).enable_all().build().map_err(Arc::new)
}

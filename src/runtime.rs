//! The threads that everything native runs on: one runtime for the process, made at first use, never shut down.
//!
//! Environments (worker threads) come and go; the driver's monitors and a release that nobody waits for any more
//! must outlive the one that started them. The threads do not keep the process alive.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::runtime::{Builder, Runtime};

use crate::error::Error;

/// One thread drives thousands of calls: they wait for the server. The second keeps keep-alive work and calls from
/// waiting for each other's bursts.
const THREADS: usize = 2;

/// The process's runtime.
pub fn runtime() -> Result<&'static Runtime, Error> {
    static RUNTIME: OnceLock<Result<Runtime, Arc<io::Error>>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            Builder::new_multi_thread()
                .worker_threads(THREADS)
                .thread_name("lock-release")
                .enable_all()
                .build()
                .map_err(Arc::new)
        })
        .as_ref()
        .map_err(|error| Error::System(Arc::clone(error)))
}

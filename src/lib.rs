//! The native side of `mongoose-lock-release`: locks `MongoDB` documents for Mongoose.
//!
//! JavaScript registers the plugin and checks arguments; everything that talks to the server is here. Answers are
//! documents, `None` for "locked by another, lost or gone", or an [`error::Error`].
//!
//! # Layout
//!
//! Data runs one way: JavaScript → [`client`] → [`store`] → the server, and back through [`bridge`].
//!
//! - [`client`]: the classes that JavaScript calls
//! - [`bridge`]: answers to JavaScript, in batches
//! - [`store`]: sends commands, sends them again, sorts answers
//! - [`call`]: when a call must be answered, and tried again
//! - [`command`]: the commands' documents, pure functions
//! - [`by_id`]: lock and release once more, in the form that costs the server least
//! - [`keeper`]: renews what is held, in batches; notices what is lost
//! - [`waiter`]: waits for locked documents
//! - [`claim`]: claims documents by a query
//! - [`chance`]: pauses and choices at random
//! - [`patience`]: how long a caller is willing to wait
//! - [`turns`]: whose turn it is when several processes wait
//! - [`lease`]: one held lock, its deadline and standing
//! - [`options`]: Mongoose's connection options for the Rust driver
//! - [`error`]: what can go wrong
//! - [`runtime`]: the threads it all runs on

mod bridge;
mod by_id;
mod call;
mod chance;
mod claim;
mod client;
mod command;
mod error;
mod keeper;
mod lease;
mod options;
mod patience;
mod runtime;
mod store;
mod turns;
mod waiter;

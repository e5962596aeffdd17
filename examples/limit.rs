//! The limit that the plugin is measured against: a loop of lock+release pairs in pure Rust.
//!
//! It sends the plugin's own commands through the same driver with the same options, and does nothing else: no
//! leases, no retries, no time-outs of ours, no JavaScript. A contender of `npm run bench`, which starts it as
//! `limit <uri> <collection>`; the protocol on stdin and stdout is described in `bench/contender.js`.

use std::io::stdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, Document, RawDocumentBuf, doc, oid::ObjectId};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use tokio::task::JoinSet;
use tokio::time::sleep;

use command::{Hold, Subject, Target};

#[allow(dead_code, reason = "lock and release are all that it has of them")]
#[path = "../src/by_id.rs"]
mod by_id;
#[allow(dead_code, reason = "two of the commands make a pair")]
#[path = "../src/command.rs"]
mod command;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const LOCK_MS: i64 = 10_000;
const MAX_TIME_MS: i64 = 30_000;

/// What all lanes share.
struct Shared {
    database: Database,
    target: Target,
    subjects: Vec<Subject>,
}

/// The state of one run.
struct Run {
    flight: usize,
    calls: AtomicU64,
    goes_on: AtomicBool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(uri), Some(collection)) = (arguments.next(), arguments.next()) else {
        return Err("usage: limit <uri> <collection>".into());
    };
    let shared = Arc::new(connect(&uri, collection).await?);
    println!("ready");
    for line in stdin().lines() {
        let line = line?;
        let numbers: Vec<u64> = line.split(' ').flat_map(str::parse).collect();
        let &[flight, warm_ms, measured_ms, _] = numbers.as_slice() else {
            return Err(format!("unknown order: {line}").into());
        };
        let [warm, measured] = [warm_ms, measured_ms].map(Duration::from_millis);
        run(&shared, usize::try_from(flight)?, warm, measured).await?;
    }
    Ok(())
}

async fn connect(uri: &str, collection: String) -> Result<Shared> {
    let mut options = ClientOptions::parse(uri).await?;
    // As the plugin sets them.
    options.max_pool_size = Some(100);
    options.retry_writes = Some(false);
    let name = options.default_database.clone().ok_or("the URI names no database")?;
    let database = Client::with_options(options)?.database(&name);

    let orders = database.collection::<Document>(&collection);
    let subjects = orders
        .distinct("_id", doc! {})
        .await?
        .into_iter()
        .map(|id: Bson| Subject::of(doc! { "_id": id }))
        .collect();
    let target = Target {
        collection,
        locked: "locked".into(),
        by: "lockedBy".into(),
        label: format!("limit:{}", std::process::id()),
        fields: Document::new(),
        write_concern: doc! { "w": "majority" },
        poll_interval_ms: 250,
    };
    Ok(Shared { database, target, subjects })
}

async fn run(
    shared: &Arc<Shared>,
    flight: usize,
    warm: Duration,
    measured: Duration,
) -> Result<()> {
    if shared.subjects.len() < flight {
        return Err(format!("{flight} in flight need as many documents").into());
    }
    let run = Arc::new(Run { flight, calls: AtomicU64::new(0), goes_on: AtomicBool::new(true) });
    let mut lanes = JoinSet::new();
    for number in 0..flight {
        lanes.spawn(lane(number, Arc::clone(shared), Arc::clone(&run)));
    }
    sleep(warm).await;
    let (before, start) = (run.calls.load(Ordering::Relaxed), Instant::now());
    println!("begin");
    sleep(measured).await;
    let elapsed_ms = start.elapsed().as_secs_f64() * 1000.0;
    // Two calls are a pair. Pairs themselves end in waves, all together, when many lanes begin at once.
    println!("end {} {elapsed_ms} 0", (run.calls.load(Ordering::Relaxed) - before) / 2);
    run.goes_on.store(false, Ordering::Relaxed);
    while let Some(ended) = lanes.join_next().await {
        ended??;
    }
    println!("idle");
    Ok(())
}

async fn lane(number: usize, shared: Arc<Shared>, run: Arc<Run>) -> Result<()> {
    // What no other lane touches.
    let own = shared.subjects.iter().skip(number).step_by(run.flight);
    for subject in own.cycle() {
        if !run.goes_on.load(Ordering::Relaxed) {
            break;
        }
        let lease = ObjectId::new();
        let lock = shared.target.lock_by_id(subject, lease, LOCK_MS, MAX_TIME_MS);
        let mut locked = send(&shared, &lock).await?;
        if !shared.target.is_locked_by(&locked, lease) {
            return Err(format!("not locked: {locked}").into());
        }
        run.calls.fetch_add(1, Ordering::Relaxed);
        let token = shared.target.take_record(&mut locked).token;
        let hold = Hold { lease, token: Some(token) };
        let released =
            send(&shared, &shared.target.release_by_id(subject, &hold, false, MAX_TIME_MS)).await?;
        if !shared.target.is_released_by(&released, &hold) {
            return Err(format!("not released: {released}").into());
        }
        run.calls.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Sends one findAndModify, which must find its document: nobody else touches it.
async fn send(shared: &Shared, command: &Document) -> Result<Document> {
    let mut reply = shared.database.run_raw_command(RawDocumentBuf::try_from(command)?).await?;
    match reply.remove("value") {
        Some(Bson::Document(document)) => Ok(document),
        _ => Err(format!("not locked or released: {reply}").into()),
    }
}

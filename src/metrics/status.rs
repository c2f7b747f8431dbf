//! What the page draws, as JSON.

use serde_json::{Value, json};

use super::VERSION;
use super::figures::{Figures, Memory, Stream};
use super::history::{History, Rates, Row};
use crate::memory::budget::Consumer;

/// The figures of now and the rows of `history` from `since` on. `start` tells one life of the server from another.
pub fn render(figures: &Figures, history: &History, start: u64, since: u64) -> String {
    let streams: Vec<_> = figures.streams.iter().map(|one| stream(one, history.rates(&one.name))).collect();
    let engines: Vec<_> = figures
        .engines
        .iter()
        .map(|engine| {
            json!({
                "number": engine.number, "model": engine.model, "device": engine.device, "streams": engine.streams,
                "batches": engine.batches, "frames": engine.frames, "slots": engine.slots, "waiting": engine.waiting,
                "callers": engine.callers, "batch_limit": engine.batch_limit, "bytes": engine.bytes,
                "last_run": engine.last_run,
            })
        })
        .collect();
    let rows: Vec<_> = history.since(since).map(row).collect();
    json!({
        "version": VERSION, "start": start, "pid": std::process::id(), "memory": memory(&figures.memory),
        "consumers": Consumer::ALL.map(Consumer::name), "streams": streams, "engines": engines, "history": rows,
    })
    .to_string()
}

fn memory(memory: &Memory) -> Value {
    let sample = &memory.sample;
    let gpus: Vec<_> = sample
        .gpus
        .iter()
        .map(|gpu| json!({ "index": gpu.index, "total": gpu.total, "used": gpu.used, "own": gpu.own }))
        .collect();
    json!({
        "resident": sample.resident, "anonymous": sample.anonymous,
        "cgroup": sample.cgroup.map(|cgroup| json!({ "used": cgroup.used, "limit": cgroup.limit })),
        "system": sample.system.map(|system| json!({ "total": system.total, "available": system.available })),
        "heap": sample.heap.map(|heap| json!({ "used": heap.used, "free": heap.free })),
        "gpus": gpus, "budget": memory.budget, "reserved": memory.reserved, "limit": memory.limit(),
        "level": memory.level as u8,
    })
}

fn stream(stream: &Stream, rates: Option<&Rates>) -> Value {
    let figures = &stream.figures;
    let pool = figures.pool;
    json!({
        "name": *stream.name, "model": figures.engine.model, "engine": figures.engine.number,
        "frames_in": figures.frames_in, "frames_out": figures.frames_out, "inferred": figures.inferred,
        "skipped": figures.skipped.by_cause().map(|(_, frames)| frames), "failed": figures.failed,
        "detections": figures.detections, "queue": figures.queue_depth, "rates": rates.map(shown),
        "pool": { "requests": pool.requests, "hits": pool.hits, "in_use": pool.in_use, "bytes": pool.bytes },
    })
}

fn shown(rates: &Rates) -> Value {
    json!({
        "in": rates.frames_in, "out": rates.frames_out, "inferred": rates.inferred, "hits": rates.hit_rate,
    })
}

/// Short names: there are hundreds.
fn row(row: &Row) -> Value {
    json!({
        "n": row.number, "t": row.time.as_secs_f64(), "rss": row.resident, "anon": row.anonymous,
        "limit": row.limit, "res": row.reserved, "level": row.level as u8, "gpu": row.gpu_used,
        "own": row.gpu_own, "rates": row.rates.as_ref().map(shown),
    })
}

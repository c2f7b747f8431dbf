//! Budgets in which not all has room that is wanted.

use crate::memory::{self, Watcher};
use crate::streams::{Streams, stop};
use crate::{Arguments, MB, STREAMS, judge, row};

/// Of an arena in which one frame has no room: its first layer alone has as much.
const SMALL_ARENA: u64 = 10_000_000;

/// Bytes that an engine for such a batch takes, as the budget counts them, and those without what is between its layers.
pub fn need(arguments: &Arguments) {
    let (film, batch) = (arguments.film(), arguments.need("batch"));
    let streams = Streams::start(STREAMS, &arguments.properties(batch)).unwrap_or_else(|error| stop(error));
    streams.feed(&film, 2 * batch.div_ceil(STREAMS)).unwrap_or_else(|error| stop(error));
    let engine = streams.engine();
    if arguments.rehearsal() {
        println!("need\t{batch}\t{:.0}", memory::resident(&streams));
    } else if let Ok(bytes) = engine.get::<u64>("gpu-bytes") {
        println!("need\t{batch}\t{bytes}");
    }
    if let Ok(gpu) = engine.get::<gst::Structure>("gpu") {
        let part = |name| gpu.get::<u64>(name).unwrap_or_else(|error| stop(error));
        let rest = part("context") + part("model") + part("tensors");
        if part("arena") > SMALL_ARENA {
            println!("without-arena\t{batch}\t{}", rest + SMALL_ARENA);
        }
    }
}

/// A budget in which 8 frames have no room together, but fewer have.
pub fn budget(arguments: &Arguments) {
    let (film, limit) = (arguments.film(), arguments.need::<u64>("budget"));
    let what = format!("a budget of {:.0} MB, too small for batch 8", limit as f64 / MB);
    let goal = "a smaller batch and a message, all frames inferred";
    // Under pressure an element leaves frames out; here it is the batches that shall give way.
    let properties =
        format!("{} pressure-reactions=false {}", arguments.properties(8), property(arguments, limit));
    let watcher = Watcher::new(arguments.gpu());
    let mut streams = Streams::made(STREAMS, &properties);
    let each = arguments.need("each");
    let played = streams.play();
    let loading = watcher.most();
    if let Err(error) = played.and_then(|()| streams.feed(&film, each)) {
        return judge(&what, &error.message, goal, false);
    }
    let running = watcher.most();
    // Later the engine may try larger ones again.
    let (messages, now) = (streams.reduced_to(), streams.reduced_to().into_iter().min());
    let (inferred, all) = (streams.inferred(), each * STREAMS);
    let figure = format!(
        "batches of {}, {} messages, {inferred} of {all} frames inferred",
        now.map_or("8".into(), |now| now.to_string()),
        messages.len()
    );
    judge(&what, &figure, goal, now.is_some_and(|now| now < 8) && inferred == all && streams.passed() == all);
    let (what, goal) = ("VRAM of this process under that budget", format!("≤ {:.0} MB", limit as f64 / MB));
    match (running, loading) {
        (Some(running), Some(loading)) if running.is_own() => {
            let megabytes = running.bytes() / MB;
            let figure =
                format!("{megabytes:.1} MB ({}); {:.1} at the load", running.source(), loading.bytes() / MB);
            judge(what, &figure, &goal, running.bytes() <= limit as f64);
        }
        (Some(running), _) => row(
            what,
            &format!("{:.1} MB ({})", running.bytes() / MB, running.source()),
            &goal,
            "not measured",
        ),
        _ => row(what, "no figures of a GPU", &goal, "not measured"),
    }
}

/// A budget in which not even one frame has room: too small by the sum before the load (`tried=0`), or only for what is between the layers, which
/// the load finds out (`tried=1`).
pub fn too_small(arguments: &Arguments) {
    let (limit, tried) = (arguments.need::<u64>("budget"), arguments.need::<u8>("tried") == 1);
    let (kind, more) = if tried { ("at the load", ", after a load") } else { ("by the sum", "") };
    let what = format!("a budget of {:.0} MB, too small for one frame {kind}", limit as f64 / MB);
    let property = property(arguments, limit);
    let goal = format!("an error that names the budget and has the sum{more}");
    match Streams::start(1, &format!("{} {property}", arguments.properties(8))) {
        Ok(_) => judge(&what, "it plays", &goal, false),
        Err(error) => {
            let numbers = error.message.matches(" MB").count() + error.message.matches(" GB").count();
            let name = property.split('=').next().unwrap_or_default();
            // The arena at its limit is in the detail; what was measured after a load that went well, in the message.
            let was_tried =
                error.detail.contains("too little free memory") || error.message.contains("it was measured");
            judge(
                &what,
                &error.message,
                &goal,
                error.message.contains(name) && numbers >= 2 && was_tried == tried,
            );
        }
    }
}

fn property(arguments: &Arguments, limit: u64) -> String {
    let name = if arguments.rehearsal() { "memory-budget" } else { "gpu-memory-budget" };
    format!("{name}={limit}")
}

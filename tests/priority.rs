//! Who gets how much of an engine that has not enough for all: as `priority` says, counted in inferences, in
//! the order in which they ran.

mod common;
#[path = "common/rig.rs"]
mod rig;
#[path = "common/service.rs"]
mod service;

use common::own_tiny;
use gst::prelude::*;
use rig::Rig;
use service::{assert_shares, batches, joined, order, shares, until_served, while_pushing};

const INFERENCES: usize = 300;

/// For what was granted before.
const SETTLED: u64 = 10;

fn rigs(model: &str, weights: &[usize], max_batch: &str) -> Vec<Rig> {
    let with =
        |weight: &usize| service::rig(model, &[("priority", &weight.to_string()), ("max-batch", max_batch)]);
    weights.iter().map(with).collect()
}

/// Files of these priorities, all of which always want more.
fn shared(owner: &str, weights: &[usize], max_batch: &str) {
    let _alone = common::alone();
    let rigs = rigs(&own_tiny("slow", owner), weights, max_batch);
    let push = |stream: usize, frame| service::push(&rigs[stream], frame);
    while_pushing(rigs.len(), push, || until_served(&rigs[0], INFERENCES as u64 + 100));
    let order = order(&rigs);
    let shares = shares(&order, rigs.len(), joined(&order, rigs.len()), INFERENCES);
    println!("{owner}: {shares:?}");
    assert_shares(&shares, weights);
}

#[test]
fn three_to_one() {
    shared("three-to-one", &[3, 1], "1");
}

#[test]
fn three_to_one_in_batches() {
    shared("three-to-one-in-batches", &[3, 1], "4");
}

#[test]
fn one_to_one_to_two() {
    shared("one-one-two", &[1, 1, 2], "1");
}

#[test]
fn one_to_one_to_two_in_batches() {
    shared("one-one-two-in-batches", &[1, 1, 2], "4");
}

#[test]
fn without_a_word_all_are_equal() {
    let _alone = common::alone();
    let model = own_tiny("slow", "no-priority");
    let rigs = [service::rig(&model, &[]), service::rig(&model, &[("priority", "1")])];
    assert_eq!(rigs[0].element.property::<u32>("priority"), 1);
    let push = |stream: usize, frame| service::push(&rigs[stream], frame);
    while_pushing(2, push, || until_served(&rigs[0], INFERENCES as u64 + 100));
    let order = order(&rigs);
    assert_shares(&shares(&order, 2, joined(&order, 2), INFERENCES), &[1, 1]);
}

/// A camera is worth as much as a file of its priority, though it does not wait.
#[test]
fn a_camera_of_three_beside_a_file_of_one() {
    let _alone = common::alone();
    let model = own_tiny("slow", "camera-of-three");
    let rigs = [
        service::rig(&model, &[("priority", "3"), ("overload", "skip")]),
        service::rig(&model, &[("priority", "1"), ("overload", "block")]),
    ];
    let push = |stream: usize, frame| {
        service::push(&rigs[stream], frame);
        if stream == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    while_pushing(2, push, || until_served(&rigs[0], INFERENCES as u64 + 100));
    let order = order(&rigs);
    let shares = shares(&order, 2, joined(&order, 2), INFERENCES);
    println!("camera of three: {shares:?}");
    assert_shares(&shares, &[3, 1]);
}

#[test]
fn a_change_while_playing_holds_from_then_on() {
    let _alone = common::alone();
    let rigs = rigs(&own_tiny("slow", "priority-changes"), &[1, 1], "1");
    let push = |stream: usize, frame| service::push(&rigs[stream], frame);
    let enough = INFERENCES as u64 + 50;
    let changes = while_pushing(2, push, || {
        until_served(&rigs[0], enough);
        rigs[0].element.set_property("priority", 3u32);
        let first = batches(&rigs[0]);
        until_served(&rigs[0], first + enough);
        rigs[1].element.set_property("priority", 6u32);
        let second = batches(&rigs[0]);
        until_served(&rigs[0], second + enough);
        [first, second]
    });
    let order = order(&rigs);
    let [before, between, after] = [joined(&order, 2), changes[0] + SETTLED, changes[1] + SETTLED]
        .map(|start| shares(&order, 2, start, INFERENCES));
    println!("{before:?}, then {between:?}, then {after:?}");
    assert_shares(&before, &[1, 1]);
    assert_shares(&between, &[3, 1]);
    assert_shares(&after, &[1, 2]);
}

/// Whoever asks for nothing leaves its share to the others.
#[test]
fn a_priority_that_is_not_used_costs_nobody() {
    let _alone = common::alone();
    let rigs = rigs(&own_tiny("slow", "unused-priority"), &[100, 1, 1], "1");
    rigs[0].push_frames(0..3);
    rigs[0].seen.frames(3);
    let push = |stream: usize, frame| service::push(&rigs[stream + 1], frame);
    while_pushing(2, push, || until_served(&rigs[0], INFERENCES as u64 + 100));
    let order = order(&rigs);
    let rest: Vec<_> =
        order.into_iter().filter(|served| served.1 > 0).map(|(run, of)| (run, of - 1)).collect();
    assert_shares(&shares(&rest, 2, joined(&rest, 2), INFERENCES), &[1, 1]);
}

#[test]
fn four_of_eleven_for_one_of_eight() {
    shared("one-of-eight", &[4, 1, 1, 1, 1, 1, 1, 1], "1");
}

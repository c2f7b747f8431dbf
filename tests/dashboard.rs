//! The metrics server, asked over real connections, and its page in a real browser.
//!
//! Tests run at the same time in one process, and a server shows all streams of the process: each test looks at those that
//! it has named.

#[path = "common/browser.rs"]
mod browser;
mod common;
#[path = "common/http.rs"]
mod http;
#[path = "common/openmetrics.rs"]
mod openmetrics;
#[path = "common/rig.rs"]
mod rig;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use browser::Browser;
use common::{Pipeline, own_tiny, tiny};
use gst::prelude::*;
use openmetrics::Metrics;
use rig::Rig;
use serde_json::{Value, json};

/// Every metric, with its type.
const METRICS: [(&str, &str); 41] = [
    ("yolodetect_build_info", "info"),
    ("yolodetect_process_resident_bytes", "gauge"),
    ("yolodetect_process_anonymous_bytes", "gauge"),
    ("yolodetect_cgroup_used_bytes", "gauge"),
    ("yolodetect_cgroup_limit_bytes", "gauge"),
    ("yolodetect_cgroup_stall_ratio", "gauge"),
    ("yolodetect_system_memory_bytes", "gauge"),
    ("yolodetect_system_available_bytes", "gauge"),
    ("yolodetect_system_stall_ratio", "gauge"),
    ("yolodetect_heap_used_bytes", "gauge"),
    ("yolodetect_heap_free_bytes", "gauge"),
    ("yolodetect_gpu_memory_bytes", "gauge"),
    ("yolodetect_gpu_used_bytes", "gauge"),
    ("yolodetect_gpu_own_bytes", "gauge"),
    ("yolodetect_budget_limit_bytes", "gauge"),
    ("yolodetect_budget_reserved_bytes", "gauge"),
    ("yolodetect_pressure_level", "gauge"),
    ("yolodetect_frames_in_total", "counter"),
    ("yolodetect_frames_out_total", "counter"),
    ("yolodetect_frames_inferred_total", "counter"),
    ("yolodetect_frames_skipped_total", "counter"),
    ("yolodetect_frames_failed_total", "counter"),
    ("yolodetect_detections_total", "counter"),
    ("yolodetect_queue_frames", "gauge"),
    ("yolodetect_pool_requests_total", "counter"),
    ("yolodetect_pool_hits_total", "counter"),
    ("yolodetect_pool_allocated_total", "counter"),
    ("yolodetect_pool_misses_total", "counter"),
    ("yolodetect_pool_available_buffers", "gauge"),
    ("yolodetect_pool_in_use_buffers", "gauge"),
    ("yolodetect_pool_peak_buffers", "gauge"),
    ("yolodetect_pool_bytes", "gauge"),
    ("yolodetect_engine_streams", "gauge"),
    ("yolodetect_engine_batches_total", "counter"),
    ("yolodetect_engine_frames_total", "counter"),
    ("yolodetect_engine_slots", "gauge"),
    ("yolodetect_engine_waiting_streams", "gauge"),
    ("yolodetect_engine_callers", "gauge"),
    ("yolodetect_engine_batch_limit", "gauge"),
    ("yolodetect_engine_loaded_bytes", "gauge"),
    ("yolodetect_engine_last_run_seconds", "gauge"),
];

/// A stream with a server of its own, where no other address is among the properties.
fn served(name: &str, properties: &[(&str, &str)]) -> (Rig, SocketAddr) {
    let address = http::address();
    (rig_at(name, address, properties), address)
}

fn rig_at(name: &str, address: SocketAddr, properties: &[(&str, &str)]) -> Rig {
    let text = address.to_string();
    Rig::new(&[&[("name", name), ("metrics-address", &text)], properties].concat())
}

fn metrics(address: SocketAddr) -> Metrics {
    let answer = http::get(address, "/metrics");
    openmetrics::parse(&answer.body).unwrap_or_else(|error| panic!("{error}\n{}", answer.body))
}

/// The named stream in `/status.json`.
fn stream(status: &Value, name: &str) -> Option<Value> {
    status["streams"].as_array().unwrap().iter().find(|stream| stream["name"] == name).cloned()
}

#[test]
fn every_metric_is_described_and_moves() {
    let model = own_tiny("v8_dynamic_batch", "dashboard-metrics");
    let (rig, address) =
        served("counting", &[("model-file", &model), ("inference-interval", "2"), ("max-batch", "2")]);
    let answer = http::get(address, "/metrics");
    assert_eq!(
        answer.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let before = metrics(address);
    let described: BTreeSet<_> =
        before.names().into_iter().zip(before.0.values().map(|family| family.kind.clone())).collect();
    let expected: BTreeSet<_> =
        METRICS.iter().map(|(name, kind)| (name.to_string(), kind.to_string())).collect();
    assert_eq!(described, expected);

    let of =
        |metrics: &Metrics, name: &str| metrics.get(&format!("yolodetect_{name}"), &[("stream", "counting")]);
    let skipped = |metrics: &Metrics, cause: &str| {
        metrics.get("yolodetect_frames_skipped_total", &[("stream", "counting"), ("cause", cause)])
    };
    let file = Path::new(&model).file_name().unwrap().to_str().unwrap();
    let engine = |metrics: &Metrics, name: &str| {
        metrics.get(&format!("yolodetect_engine_{name}"), &[("model", file), ("device", "cpu")])
    };
    assert_eq!((of(&before, "frames_in_total"), engine(&before, "frames_total")), (0.0, 0.0));
    assert_eq!(before.get("yolodetect_frames_in_total", &[("model", file)]), 0.0);

    // A marker model finds one object in a red picture.
    rig.push_frames(0..5);
    rig.seen.frames(5);
    // A frame may be out before its batch is counted.
    rig.until_stats("batches", |stats| {
        stats.get::<gst::Structure>("engine").unwrap().get::<u64>("frames") == Ok(3)
    });
    let after = metrics(address);
    for (name, value) in [
        ("frames_in_total", 5.0),
        ("frames_out_total", 5.0),
        ("frames_inferred_total", 3.0),
        ("frames_failed_total", 0.0),
        ("queue_frames", 0.0),
    ] {
        assert_eq!(of(&after, name), value, "{name}");
    }
    let found: usize = rig.seen.frames(5).iter().map(|frame| frame.boxes.len()).sum();
    assert!(found > 0);
    assert_eq!(of(&after, "detections_total"), found as f64);
    assert_eq!(["interval", "overload", "pressure"].map(|cause| skipped(&after, cause)), [2.0, 0.0, 0.0]);
    assert_eq!((engine(&after, "frames_total"), engine(&after, "streams")), (3.0, 1.0));
    assert_eq!((engine(&after, "batch_limit"), engine(&after, "waiting_streams")), (2.0, 0.0));
    assert!(engine(&after, "batches_total") >= 2.0 && engine(&after, "slots") >= 2.0);
    assert!(engine(&after, "callers") >= 1.0 && engine(&after, "last_run_seconds") > 0.0);
    assert!(after.get("yolodetect_process_resident_bytes", &[]) > 1e6);
    assert!(after.get("yolodetect_build_info", &[("version", env!("CARGO_PKG_VERSION"))]) == 1.0);
    for consumer in ["model", "arena", "tensors", "frames", "history"] {
        assert!(after.get("yolodetect_budget_reserved_bytes", &[("consumer", consumer)]) >= 0.0);
    }
    assert!((0.0..=3.0).contains(&after.get("yolodetect_pressure_level", &[])));
}

#[test]
fn a_frame_that_waits_is_in_the_queue() {
    let (rig, address) = served("queueing", &[]);
    rig.seen.close();
    rig.push_frames(0..2);
    rig.seen.until_blocked();
    let depth = metrics(address).get("yolodetect_queue_frames", &[("stream", "queueing")]);
    assert!(depth >= 1.0, "{depth}");
    rig.seen.open();
    rig.seen.frames(2);
}

#[test]
fn names_are_data() {
    let name = "a \"b\" \\ <i>c</i>\nd=é,}";
    let (rig, address) = served(name, &[]);
    rig.push_frames(0..1);
    rig.seen.frames(1);
    assert_eq!(metrics(address).get("yolodetect_frames_in_total", &[("stream", name)]), 1.0);
    let status = http::get(address, "/status.json").json();
    assert_eq!(stream(&status, name).unwrap()["frames_in"], 1);
}

#[test]
fn streams_share_a_server_and_the_last_one_closes_it() {
    let (one, address) = served("sharing-1", &[]);
    let two = rig_at("sharing-2", address, &[]);
    // One of the same name, and one that names no address.
    let twin = rig_at("sharing-1", address, &[]);
    let silent = Rig::new(&[("name", "sharing-silent")]);
    let shown = || {
        let status = http::get(address, "/status.json").json();
        ["sharing-1", "sharing-1#2", "sharing-2", "sharing-silent"]
            .map(|name| stream(&status, name).is_some())
    };
    assert_eq!(shown(), [true; 4]);
    one.element.set_state(gst::State::Ready).unwrap();
    assert_eq!(shown(), [false, true, true, true]);
    one.element.set_state(gst::State::Playing).unwrap();
    assert_eq!(shown(), [true; 4]);
    drop((one, twin, silent));
    assert_eq!(shown(), [false, false, true, false]);
    // Another server shows the same streams.
    let (other, elsewhere) = served("sharing-3", &[]);
    let there = http::get(elsewhere, "/status.json").json();
    assert!(stream(&there, "sharing-2").is_some() && stream(&there, "sharing-3").is_some());
    // Somebody is being answered, somebody has said nothing yet: neither keeps the address.
    let idle = http::connect(address);
    drop(two);
    TcpListener::bind(address).expect("the address is free");
    assert_eq!(http::get(elsewhere, "/").status, 200);
    drop((idle, other));
    TcpListener::bind(elsewhere).expect("the address is free");
}

/// Waits until there are so many; a thread names itself when it begins, and is listed for a moment after its end.
fn until_server_threads(wanted: usize) {
    let deadline = Instant::now() + common::PATIENCE;
    while server_threads() != wanted {
        assert!(Instant::now() < deadline, "{} threads, not {wanted}", server_threads());
        std::thread::yield_now();
    }
}

fn server_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with("yolo-metrics")).count()
}

#[test]
fn there_is_one_thread_per_server_and_none_without() {
    const TEST: &str = "there_is_one_thread_per_server_and_none_without";
    if !common::is_child() {
        let output = common::another_process(TEST, Some(&common::library()), &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let silent = Rig::new(&[]);
    silent.push_frames(0..1);
    silent.seen.frames(1);
    assert_eq!(server_threads(), 0);
    let (one, address) = served("thread-1", &[]);
    let two = rig_at("thread-2", address, &[]);
    until_server_threads(1);
    let other = served("thread-3", &[]);
    until_server_threads(2);
    drop((one, two, other));
    until_server_threads(0);
}

fn refusal(address: &str) -> String {
    let pipeline = Pipeline::new(&format!(
        "videotestsrc num-buffers=1 ! video/x-raw,format=RGB,width=64,height=64 \
         ! yolodetect model-file={} metrics-address={address} ! fakesink",
        tiny("v8")
    ));
    pipeline.run().expect_err("the element starts")
}

#[test]
fn an_address_that_cannot_be_had_is_an_error_with_the_reason() {
    let address = http::address();
    let taken = TcpListener::bind(address).unwrap();
    let error = refusal(&address.to_string());
    for word in [&*format!("metrics-address={address}"), "Address already in use", "another port"] {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    // Nobody of this machine has that one.
    let error = refusal("192.0.2.1:9464");
    assert!(error.contains("metrics-address=192.0.2.1:9464"), "{error}");
    for address in ["nonsense", "127.0.0.1", "127.0.0.1:99999", ":0", "http://127.0.0.1:9464"] {
        let error = refusal(address);
        for word in [&*format!("metrics-address={address} "), "such as 127.0.0.1:9464"] {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    }
    drop(taken);
    let rig = rig_at("mended", address, &[]);
    assert_eq!(http::get(address, "/").status, 200);
    // An empty address is none.
    drop(rig);
    let rig = Rig::new(&[("metrics-address", "")]);
    rig.push_frames(0..1);
    rig.seen.frames(1);
}

#[test]
fn an_element_that_does_not_start_keeps_no_address() {
    let address = http::address();
    let pipeline = Pipeline::new(&format!(
        "videotestsrc num-buffers=1 ! yolodetect model-file=/nowhere.onnx metrics-address={address} ! fakesink"
    ));
    assert!(pipeline.run().unwrap_err().contains("/nowhere.onnx"));
    TcpListener::bind(address).expect("the address is free");
}

#[test]
fn only_what_is_there_is_answered() {
    let (_rig, address) = served("answering", &[]);
    let host = format!("Host: {address}\r\n");
    for path in ["/", "/metrics", "/status.json", "/status.json?since=5"] {
        let (whole, head) = (http::get(address, path), http::request(address, "HEAD", path, &host));
        assert_eq!((whole.status, head.status), (200, 200), "{path}");
        assert!(!whole.body.is_empty() && head.body.is_empty(), "{path}");
        assert_eq!(whole.header("content-type"), head.header("content-type"), "{path}");
        assert!(head.header("content-length").unwrap().parse::<usize>().unwrap() > 50, "{path}");
        assert_eq!(whole.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(whole.header("cache-control"), Some("no-store"), "{path}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
            let refused = http::request(address, method, path, &host);
            assert_eq!(
                (refused.status, refused.header("allow")),
                (405, Some("GET, HEAD")),
                "{method} {path}"
            );
        }
    }
    for path in ["/nothing", "/metrics/", "/../etc/passwd", "/favicon.ico", "//", "/%2e%2e"] {
        assert_eq!(http::get(address, path).status, 404, "{path}");
    }
    // A page of elsewhere whose name leads here.
    let rebound = http::request(address, "GET", "/status.json", "Host: attacker.example:9464\r\n");
    assert_eq!(rebound.status, 421);
    assert!(!rebound.body.contains("answering"));
    assert_eq!(http::request(address, "GET", "/", "Host: localhost:1\r\n").status, 200);
}

#[test]
fn the_page_may_do_nothing_but_ask_its_server() {
    let (_rig, address) = served("page", &[]);
    let page = http::get(address, "/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    for part in ["connect-src 'self'", "script-src 'nonce-", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
}

#[test]
fn the_status_has_a_history_that_goes_on() {
    let (rig, address) = served("remembered", &[]);
    rig.push_frames(0..3);
    rig.seen.frames(3);
    let rows = |status: &Value| status["history"].as_array().unwrap().clone();
    // A rate needs the stream in two rows; it may have come after the first.
    let has_rate =
        |status: &Value| stream(status, "remembered").is_some_and(|one| one["rates"]["in"].is_number());
    let status = http::until(address, "/status.json", "rate", |answer| has_rate(&answer.json()));
    assert_eq!(status.header("content-type"), Some("application/json"));
    let status = status.json();
    assert_eq!(status["consumers"], json!(["model", "arena", "tensors", "frames", "history"]));
    let numbers: Vec<_> = rows(&status).iter().map(|row| row["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    assert!(rows(&status).iter().all(|row| row["rss"].as_u64().unwrap() > 1_000_000));
    let one = stream(&status, "remembered").unwrap();
    assert_eq!(
        (&one["frames_in"], &one["inferred"], &one["skipped"]),
        (&json!(3), &json!(3), &json!([0, 0, 0]))
    );
    let later = http::get(address, "/status.json?since=1").json();
    assert_eq!(rows(&later)[0]["n"], 1);
    assert_eq!(later["start"], status["start"]);
}

#[test]
fn hostile_clients_hurt_neither_the_server_nor_the_stream() {
    let (rig, address) = served("besieged", &[]);
    // More than are talked to at the same time; some say nothing, some stop in the middle, some never read.
    let mut silent: Vec<_> = (0..40).map(|_| http::connect(address)).collect();
    for (number, stream) in silent.iter_mut().enumerate() {
        let part: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /metr",
            _ => b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        };
        stream.write_all(part).unwrap();
    }
    // Frames pass while nobody is served.
    rig.push_frames(0..50);
    assert_eq!(rig.seen.frames(50).len(), 50);
    // All of them are hung up on, and then there is room again.
    for stream in &mut silent {
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            // Or the server waits longer than the test.
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.starts_with("HTTP/1.1 200"), "{text}");
    }
    let long = "x".repeat(1 << 20);
    let many = (0..1000).map(|number| format!("H{number}: x\r\n")).collect::<String>();
    let noise: Vec<u8> =
        (0..100_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let huge = format!("POST / HTTP/1.1\r\nHost: {address}\r\nContent-Length: 18446744073709551615\r\n\r\n");
    for request in [
        noise.as_slice(),
        format!("GET /{long} HTTP/1.1\r\n\r\n").as_bytes(),
        format!("GET / HTTP/1.1\r\nHost: {long}\r\n\r\n").as_bytes(),
        format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes(),
        huge.as_bytes(),
        format!("{huge}{long}").as_bytes(),
        b"\r\n\r\n\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  /\x00 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nzzz\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ] {
        // The server may have hung up before all was sent.
        let _ = http::exchange(address, request);
        assert_eq!(http::get(address, "/metrics").status, 200, "{:?}", &request[..request.len().min(40)]);
    }
    rig.push_frames(50..60);
    assert_eq!(rig.seen.frames(60).len(), 60);
    assert!(!rig.has_message(gst::MessageType::Error) && !rig.has_message(gst::MessageType::Warning));
}

#[test]
fn the_grafana_dashboard_uses_what_is_there() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    let (_rig, address) = served("grafana", &[]);
    let exposed: BTreeSet<String> = metrics(address).names().into_iter().collect();
    let mut used = BTreeSet::new();
    let mut sources = BTreeSet::new();
    walk(&dashboard, &mut |key, value| {
        if ["expr", "query", "definition"].contains(&key)
            && let Some(text) = value.as_str()
        {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            used.extend(words.filter(|word| word.starts_with("yolodetect_")).map(str::to_string));
        }
        if key == "uid" && value != "yolodetect" {
            sources.insert(value.to_string());
        }
    });
    let unknown: Vec<_> = used.difference(&exposed).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not exposed");
    // All but those that say little over time.
    let unused: Vec<_> = exposed.difference(&used).map(String::as_str).collect();
    assert_eq!(
        unused,
        [
            "yolodetect_engine_callers",
            "yolodetect_engine_slots",
            "yolodetect_frames_out_total",
            "yolodetect_pool_allocated_total"
        ]
    );
    assert_eq!(sources, BTreeSet::from(["\"${datasource}\"".to_string()]));
}

fn walk(value: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            visit(key, value);
            walk(value, visit);
        }),
        Value::Array(values) => values.iter().for_each(|value| walk(value, visit)),
        _ => (),
    }
}

/// A figure of a table's row in a document: what follows `row` under that column.
fn cell(document: &str, row: &str, column: &str) -> String {
    let at =
        document.find(&format!("<span>{row}</span>")).unwrap_or_else(|| panic!("no row {row}: {document}"));
    let label = format!("data-label=\"{column}\"><span>");
    let from =
        document[at..].find(&label).unwrap_or_else(|| panic!("no {column} of {row}")) + at + label.len();
    document[from..].split('<').next().unwrap().to_string()
}

fn browser(test: &str) -> Option<Browser> {
    let browser = Browser::find();
    if browser.is_none() {
        common::skip(test, "there is no chromium (tests/setup.sh installs it where it can)");
    }
    browser
}

#[test]
fn a_browser_draws_a_running_pipeline() {
    let Some(browser) = browser("a_browser_draws_a_running_pipeline") else { return };
    let address = http::address();
    let branch = |name: &str, properties: &str| {
        format!(
            "videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=320,height=240,framerate=25/1 \
             ! yolodetect name={name} metrics-address={address} model-file={} {properties} ! fakesink sync=false ",
            tiny("v8")
        )
    };
    let pipeline = Pipeline::new(
        &(branch("gate", "inference-interval=2") + &branch("yard", "") + &branch("<b>hall</b>", "")),
    );
    pipeline.0.set_state(gst::State::Playing).unwrap();
    http::until(address, "/status.json", "stream with frames and some history", |answer| {
        let status = answer.json();
        let flows =
            |name| stream(&status, name).is_some_and(|stream| stream["rates"]["in"].as_f64() > Some(1.0));
        let rows = status["history"].as_array().unwrap().len();
        ["gate", "yard", "<b>hall</b>"].into_iter().all(flows) && rows > 8
    });
    let url = format!("http://{address}/");
    let document = browser.document(&url);
    for name in ["gate", "yard", "&lt;b&gt;hall&lt;/b&gt;"] {
        let rate: f64 = cell(&document, name, "frames/s").parse().unwrap();
        assert!(rate > 1.0, "{name}: {rate}");
        assert_eq!(cell(&document, name, "model"), "v8.onnx");
        assert_eq!(cell(&document, name, "failed"), "0");
    }
    assert_ne!(cell(&document, "gate", "skipped: interval"), "0");
    assert_eq!(cell(&document, "yard", "skipped: interval"), "0");
    let summary = document.split("aria-label=\"Memory over the last").nth(1).expect("the chart's text");
    let resident = summary.split("resident ").nth(1).unwrap().split(',').next().unwrap();
    assert!(resident.ends_with(" MB"), "{resident}");
    let line = document.split("class=\"stroke rss\" d=\"").nth(1).expect("the resident memory's line");
    assert!(line.split('"').next().unwrap().split('L').count() > 8, "{line:.200}");
    let levels = ["nominal", "warning", "critical", "emergency"];
    assert!(
        levels.iter().any(|level| document.contains(&format!(">pressure: {level}<"))),
        "the level as text"
    );
    assert!(document.contains(">live<"));

    let picture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(name);
    browser.screenshot(&url, (1400, 1250), false, &picture("dashboard.png"));
    browser.screenshot(&url, (360, 2300), true, &picture("dashboard-narrow.png"));
}

/// Ten seconds of one life of a server.
fn invented(start: u64, level: usize, rows: std::ops::Range<u64>, gpu: bool, streams: Value) -> String {
    let row = |number: u64| {
        json!({
            "n": number, "t": number as f64, "rss": 200_000_000 + number, "anon": 100_000_000, "limit": 400_000_000,
            "res": [10_000_000, 20_000_000, 5_000_000, 1_000_000, 0], "level": number as usize % 4,
            "gpu": gpu.then_some(2_000_000_000u64), "own": gpu.then_some(600_000_000),
            "rates": { "in": 25.0, "out": 25.0, "inferred": 12.5, "hits": 0.975 },
        })
    };
    let gpus = if gpu { json!([{ "index": 3, "total": 80e9, "used": 2e9, "own": 6e8 }]) } else { json!([]) };
    json!({
        "version": "0", "start": start, "pid": 1, "consumers": ["model", "arena", "tensors", "frames", "history"],
        "memory": {
            "resident": 200_000_000, "anonymous": 100_000_000, "cgroup": { "used": 1, "limit": 400_000_000 },
            "system": { "total": 8e9, "available": 4e9 }, "heap": { "used": 9e7, "free": 1e6 }, "gpus": gpus,
            "budget": 400_000_000, "reserved": [10_000_000, 20_000_000, 5_000_000, 1_000_000, 0],
            "limit": 400_000_000, "level": level,
        },
        "streams": streams, "engines": [], "history": rows.map(row).collect::<Vec<_>>(),
    })
    .to_string()
}

#[test]
fn a_browser_follows_levels_gpus_and_a_restart() {
    let Some(browser) = browser("a_browser_follows_levels_gpus_and_a_restart") else { return };
    let (_rig, address) = served("original", &[]);
    let page = http::get(address, "/").body;
    let polls = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen = polls.clone();
    let name = "<img src=x onerror=\"document.title='bad'\">";
    let streams = json!([{
        "name": name, "model": "m.onnx", "engine": 0, "frames_in": 100, "frames_out": 100, "inferred": 50,
        "skipped": [1, 2, 3], "failed": 4, "detections": 1_234_567, "queue": 5,
        "rates": { "in": 24.96, "out": 25.0, "inferred": 12.5, "hits": 0.975 },
        "pool": { "requests": 1000, "hits": 975, "in_use": 3, "bytes": 1 },
    }]);
    let pretender = http::pretend(move |path| {
        if path == "/" {
            return Some(("text/html", page.clone()));
        }
        let query = path.strip_prefix("/status.json?since=")?;
        let mut polls = seen.lock().unwrap();
        polls.push(query.to_string());
        let since: u64 = query.parse().ok()?;
        // One life with no streams, a time without an answer, then another life.
        let status = match polls.len() {
            1 => invented(1, 0, 0..5, false, json!([])),
            2 => return None,
            _ => invented(2, 2, since.min(10)..10, true, streams.clone()),
        };
        Some(("application/json", status))
    });
    let document = browser.document(&format!("http://{pretender}/"));
    let polls = polls.lock().unwrap().clone();
    assert!(polls.len() >= 5, "{polls:?}");
    assert_eq!(polls[..5], ["0", "5", "5", "0", "10"], "the history of the new life is asked for");
    assert!(document.contains(">pressure: critical<") && document.contains(">live<"), "{document}");
    // The bands in words.
    assert!(
        document
            .contains("; pressure at most emergency; now: resident 200 MB, anonymous 100 MB, limit 400 MB")
    );
    assert!(document.contains("GPU 3: 600 MB by this process, 2.00 GB of 80.0 GB by all"));
    for level in 0..4 {
        assert!(document.contains(&format!("class=\"band level-{level}\"")), "level {level}");
    }
    for part in [
        "fill model",
        "fill arena",
        "fill tensors",
        "fill frames",
        "stroke rss",
        "stroke limit",
        "stroke hits",
    ] {
        assert!(document.contains(&format!("class=\"{part}\"")), "{part}");
    }
    assert!(!document.contains("class=\"fill history\""), "nothing is reserved for it");
    let text = "&lt;img src=x onerror=\"document.title='bad'\"&gt;";
    for (column, value) in [
        ("frames/s", "25.0"),
        ("inferred/s", "12.5"),
        ("skipped: interval", "1"),
        ("skipped: overload", "2"),
        ("skipped: pressure", "3"),
        ("failed", "4"),
        ("queue", "5"),
        ("detections", "1,234,567"),
        ("pool hits", "97.5 %"),
    ] {
        assert_eq!(cell(&document, text, column), value, "{column}");
    }
    assert!(document.contains("<title>yolodetect</title>") && !document.contains("<img"));
    assert!(document.contains(">no engines<") && !document.contains(">no streams<"));
}

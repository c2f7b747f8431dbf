//! The RTSP example with real cameras: servers on the loopback interface that break off, freeze, refuse and
//! change.

mod common;
#[path = "common/rtsp.rs"]
mod rtsp;

// The parts of the example that need no camera bring their own tests.
#[path = "../examples/rtsp_ingest/address.rs"]
mod address;
#[path = "../examples/rtsp_ingest/backoff.rs"]
mod backoff;
#[path = "../examples/rtsp_ingest/commands.rs"]
#[allow(dead_code)]
mod commands;

use std::collections::HashSet;
use std::os::fd::AsRawFd;

use common::{skip, tiny, yolo12n};
use rtsp::{Camera, Ingest, Undisturbed, call, clip, lines, parse_records};

/// Fast, for where boxes do not matter.
fn model() -> String {
    tiny("v8_dynamic_batch")
}

fn named(name: &str, uri: &str) -> String {
    format!("{name}={uri}")
}

#[test]
fn two_cameras_give_records() {
    let street = format!("street={}", clip("bikes"));
    let film = format!("film={}", clip("bigbuckbunny"));
    let server = Camera::start(&[&street, &film]);
    let (street, film) = (named("street", &server.uri("street")), named("film", &server.uri("film")));
    let mut ingest = Ingest::start(&[
        "--model",
        &yolo12n(),
        "--set",
        "max-fps=2",
        "--set",
        "stats-interval=0",
        &street,
        &film,
    ]);
    ingest.until("both see something", |ingest| {
        ["street", "film"].iter().all(|name| ingest.report(name).inferred >= 3)
            && ingest.report("street").detections > 0
    });
    ingest.quit();
    for (name, size) in [("street", "640x272"), ("film", "1280x720")] {
        let report = ingest.report(name);
        assert_eq!((report.state.as_str(), report.reconnects, report.size.as_str()), ("playing", 0, size));
        assert!(report.inferred + report.dropped <= report.frames);
        ingest.assert_continuous(name);
        let records = ingest.records(name);
        // Stopping drops what is on its way.
        let recorded = records.len() as u64;
        assert!(recorded + report.dropped + 20 >= report.frames, "{recorded} of {report:?}");
        let statuses: HashSet<_> = records.iter().map(|record| record["status"].as_str().unwrap()).collect();
        assert!(statuses.contains("inferred") && statuses.contains("interval"), "{statuses:?}");
    }
    let classes: HashSet<_> = ingest
        .records("street")
        .iter()
        .flat_map(|record| record["detections"].as_array().unwrap().clone())
        .map(|detection| detection["class"].as_str().unwrap().to_string())
        .collect();
    assert!(["person", "car", "bicycle"].iter().any(|class| classes.contains(*class)), "{classes:?}");
}

#[test]
fn a_camera_that_dies_is_connected_again_and_the_other_never_notices() {
    let (gate, yard) = (Camera::street(), Camera::street());
    let (gate_is, yard_is) = (named("gate", &gate.uri("street")), named("yard", &yard.uri("street")));
    let mut ingest = Ingest::start(&["--model", &model(), &gate_is, &yard_is]);
    ingest.until("both play", |ingest| {
        ["gate", "yard"].iter().all(|name| ingest.report(name).state == "playing")
    });
    let other = Undisturbed::new(&ingest, "yard");
    let (frames, others) = (ingest.report("gate").frames, ingest.report("yard").frames);

    let port = gate.kill().to_string();
    ingest.watch(
        "the gate is lost",
        |ingest| other.check(ingest),
        |ingest| ingest.report("gate").state.starts_with("lost, waiting"),
    );
    // Refused meanwhile.
    ingest.watch(
        "frames of the yard without the gate",
        |ingest| other.check(ingest),
        |ingest| ingest.report("yard").frames > others + 25,
    );
    let _gate = Camera::start(&["--port", &port, &format!("street={}", clip("bikes"))]);
    ingest.watch(
        "the gate is back",
        |ingest| other.check(ingest),
        |ingest| ingest.report("gate").reconnects == 1 && ingest.report("gate").frames > frames + 25,
    );
    ingest.quit();
    ingest.assert_continuous("gate");
    ingest.assert_continuous("yard");
}

#[test]
fn a_camera_that_freezes_is_connected_again() {
    let mut server = Camera::street();
    let camera = named("gate", &server.uri("street"));
    let slow = ["--min-backoff", "1", "--max-backoff", "1"];
    let mut ingest =
        Ingest::start(&[&slow[..], &["--model", &model(), "--stall-timeout", "2", &camera]].concat());
    ingest.until("it plays", |ingest| ingest.report("gate").state == "playing");

    // The camera keeps its connections, but sends no picture any more; not to new ones either.
    server.tell("freeze street");
    ingest.until_said("gate: frozen: no frame for 2.0 s");
    ingest.until("the status says so", |ingest| ingest.report("gate").state.starts_with("frozen, waiting"));
    ingest.until_said("gate: no frames: none came within 2.0 s");
    server.tell("thaw street");
    ingest.until("it is back", |ingest| ingest.report("gate").reconnects == 1);
    ingest.until_frames("gate", 10);

    // The camera's processor stands still; its connections stay open.
    let before = ingest.report("gate").reconnects;
    server.signal(libc::SIGSTOP);
    ingest.until_said("gate: frozen");
    server.signal(libc::SIGCONT);
    ingest.until("it is back again", |ingest| ingest.report("gate").reconnects > before);
    ingest.until_frames("gate", 10);
    ingest.quit();
    ingest.assert_continuous("gate");
}

#[test]
fn a_picture_may_change_its_size() {
    let mut server = Camera::street();
    let camera = named("gate", &server.uri("street"));
    let mut ingest = Ingest::start(&["--model", &model(), &camera]);
    ingest.until("it plays", |ingest| ingest.report("gate").size == "640x272");

    // In the middle of the stream.
    server.tell(&format!("clip street {}", clip("bigbuckbunny")));
    ingest.until("the picture is larger", |ingest| ingest.report("gate").size == "1280x720");
    ingest.until_frames("gate", 10);
    assert_eq!(ingest.report("gate").reconnects, 0);

    // Between two connections.
    server.tell("freeze street");
    server.tell(&format!("clip street {}", clip("bikes")));
    server.tell("kick");
    server.tell("thaw street");
    ingest.until("the picture is smaller", |ingest| ingest.report("gate").size == "640x272");
    ingest.until_frames("gate", 10);
    assert_eq!(ingest.report("gate").reconnects, 1);
    ingest.quit();
    ingest.assert_continuous("gate");
    assert!(ingest.records("gate").iter().all(|record| record["status"] != "failed"));
}

#[test]
fn wrong_credentials_are_told_and_no_password_is() {
    // As a URI has to write it.
    let (password, written, wrong) = ("ope%n#sesame", "ope%25n#sesame", "guess-my-word");
    let server =
        Camera::start(&["--user", "admin", "--password", password, &format!("street={}", clip("bikes"))]);
    let at = |login: &str| server.uri("street").replace("rtsp://", &format!("rtsp://{login}@"));
    let right = named("right", &at(&format!("admin:{written}")));
    let wrong_one = named("wrong", &at(&format!("admin:{wrong}")));
    let none = named("none", &server.uri("street"));
    let mut ingest = Ingest::start(&["--model", &model(), "--max-backoff", "40", &right, &wrong_one, &none]);
    ingest.until("each has its answer", |ingest| {
        ingest.report("right").frames > 10
            && ["wrong", "none"]
                .iter()
                .all(|name| ingest.report(name).state.starts_with("unauthorized, waiting"))
    });
    let said = |ingest: &Ingest, text: &str| ingest.log.iter().any(|line| line.contains(text));
    assert!(said(&ingest, "wrong: unauthorized: the camera refuses the password of admin (401)"));
    assert!(said(&ingest, "none: unauthorized: the camera wants credentials (401)"));
    // Asking again and again may lock the account.
    for line in ingest.log.iter().filter(|line| line.contains("unauthorized: ")) {
        let (_, wait) = line.rsplit_once("next attempt in ").unwrap();
        assert!(wait.strip_suffix(" s").unwrap().parse::<f64>().unwrap() >= 20.0, "{line}");
    }
    ingest.type_in("list");
    ingest.until_said("right=rtsp://admin:***@127.0.0.1");
    ingest.type_in(&format!("add late {}", at(&format!("admin:{written}"))));
    ingest.until("the late one plays", |ingest| ingest.report("late").frames > 10);
    ingest.quit();
    let everything = ingest.everything();
    for word in [password, written, wrong] {
        assert!(!everything.contains(word), "{word} is in {everything}");
    }
}

#[test]
fn credentials_may_come_from_a_file() {
    let server =
        Camera::start(&["--user", "admin", "--password", "hush-hush", &format!("street={}", clip("bikes"))]);
    let folder = tempfile::tempdir().unwrap();
    let (passwords, cameras) = (folder.path().join("password"), folder.path().join("cameras"));
    std::fs::write(&passwords, "hush-hush\n").unwrap();
    let uri = server.uri("street");
    std::fs::write(&cameras, format!("# the gates\nnorth = {uri}\n\n  south={uri}?channel=2\n{uri}\n"))
        .unwrap();
    let mut ingest = Ingest::start(&[
        "--model",
        &model(),
        "--user",
        "admin",
        "--password-file",
        passwords.to_str().unwrap(),
        "--cameras",
        cameras.to_str().unwrap(),
    ]);
    ingest.until("they play", |ingest| ["north", "cam1"].iter().all(|name| ingest.report(name).frames > 10));
    ingest.quit();
    assert!(
        ingest
            .log
            .iter()
            .any(|line| line.starts_with("south: connecting to") && line.ends_with("?channel=2"))
    );
    assert!(!ingest.everything().contains("hush-hush"));
}

#[test]
fn a_stream_that_is_not_there_is_told_and_found_later() {
    let mut server = Camera::street();
    let camera = named("gate", &server.uri("later"));
    let mut ingest = Ingest::start(&["--model", &model(), "--max-backoff", "1", &camera]);
    ingest.until_said("gate: not found: the camera is there, but has nothing at");
    ingest
        .until("the status says so", |ingest| ingest.report("gate").state.starts_with("not found, waiting"));
    server.tell(&format!("add later {}", clip("bikes")));
    ingest.until("it plays", |ingest| ingest.report("gate").frames > 10);
    assert_eq!(ingest.report("gate").reconnects, 0, "it was never connected before");
    ingest.quit();
}

#[test]
fn cameras_come_and_go_while_others_play() {
    let server = Camera::street();
    let uri = server.uri("street");
    let mut ingest = Ingest::to_standard_output(&["--model", &model(), &named("first", &uri)]);
    ingest.until("it plays", |ingest| ingest.report("first").state == "playing");
    let first = Undisturbed::new(&ingest, "first");

    ingest.type_in(&format!("add second {uri}"));
    ingest.watch("both play", |ingest| first.check(ingest), |ingest| ingest.report("second").frames > 10);
    for (line, answer) in [
        (format!("add second {uri}"), "error: there is a camera second already"),
        ("add third http://127.0.0.1/".into(), "error: http://127.0.0.1/ is no camera's address"),
        ("add ../third rtsp://127.0.0.1/".into(), "is no name for a camera"),
        ("remove third".into(), "error: there is no camera third"),
        ("shout".into(), "error: commands: add NAME URI"),
        ("remove".into(), "error: remove is written differently"),
        ("status".into(), "2 of 2 playing"),
    ] {
        ingest.type_in(&line);
        ingest.until_said(answer);
        first.check(&ingest);
    }
    ingest.type_in("remove second");
    ingest.until_said("second: removed");
    // The name is free again.
    ingest.type_in(&format!("add second {uri}"));
    ingest.until_said("second: playing");
    ingest.type_in("remove second");
    ingest.until_said("second: removed");

    // That nobody can type any more ends nothing.
    ingest.close_input();
    let frames = ingest.report("first").frames;
    ingest.watch(
        "it goes on",
        |ingest| first.check(ingest),
        |ingest| ingest.report("first").frames > frames + 25,
    );
    ingest.signal(libc::SIGTERM);
    assert!(ingest.wait().success());

    let lines: Vec<String> = ingest.records.take().unwrap().iter().collect();
    let records = parse_records(lines.iter().map(String::as_str));
    let of = |name: &str| records.iter().filter(|record| record["element"] == name).count();
    assert!(of("first") > 50 && of("second") > 10, "{} and {}", of("first"), of("second"));
    assert_eq!(of("first") + of("second"), records.len());
}

#[test]
fn pictures_come_over_udp_as_well() {
    let server = Camera::street();
    for protocols in ["udp", "auto"] {
        let camera = named("gate", &server.uri("street"));
        let mut ingest = Ingest::start(&["--model", &model(), "--protocols", protocols, &camera]);
        ingest.until("it plays", |ingest| ingest.report("gate").frames > 25);
        ingest.signal(libc::SIGINT);
        assert!(ingest.wait().success());
        assert_eq!(ingest.report("gate").reconnects, 0);
        ingest.assert_continuous("gate");
    }
}

#[test]
fn the_sound_of_a_camera_is_left_alone() {
    // It is the camera's first stream.
    let mut server = Camera::start(&["--sound", &format!("street={}", clip("bikes"))]);
    for (calls, protocols) in [("1", "tcp"), ("2", "udp")] {
        let camera = named("gate", &server.uri("street"));
        let mut ingest = Ingest::start(&["--model", &model(), "--protocols", protocols, &camera]);
        ingest.until("it plays", |ingest| ingest.report("gate").frames > 25);
        ingest.quit();
        assert_eq!(server.tell("setups"), calls, "streams that were asked for");
        assert_eq!(ingest.report("gate").reconnects, 0);
        assert!(!ingest.log.iter().any(|line| line.contains("warning")), "{}", ingest.log.join("\n"));
    }
}

#[test]
fn h265_is_decoded_as_well() {
    common::init();
    for element in ["x265enc", "avdec_h265"] {
        if gst::ElementFactory::find(element).is_none() {
            return skip("h265_is_decoded_as_well", &format!("this GStreamer has no {element}"));
        }
    }
    let server = Camera::start(&["--h265", &format!("street={}", clip("bikes"))]);
    let mut ingest = Ingest::start(&["--model", &model(), &named("gate", &server.uri("street"))]);
    // More than the clip's encoded part: it goes round.
    ingest.until("it plays", |ingest| ingest.report("gate").frames > 60);
    assert_eq!(ingest.report("gate").size, "640x272");
    ingest.quit();
    ingest.assert_continuous("gate");
}

#[test]
fn output_that_nobody_takes_is_no_fault_of_the_camera() {
    let server = Camera::street();
    let camera = named("gate", &server.uri("street"));
    let folder = tempfile::tempdir().unwrap();
    let mut ingest = Ingest::spawn(folder, &["--model", &model(), "--stall-timeout", "1", &camera]);
    let output = ingest.standard_output();
    // SAFETY: a plain system call on a descriptor that is open.
    let size = unsafe { libc::fcntl(output.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert!(size > 0, "{}", std::io::Error::last_os_error());
    ingest.until_said("gate: nobody takes the detector's output");
    ingest.until("the status says so", |ingest| ingest.report("gate").state == "blocked by the output");

    let records = lines(output);
    ingest.until("it plays again", |ingest| ingest.report("gate").state == "playing");
    ingest.until_frames("gate", 10);
    let gate = ingest.report("gate");
    assert!(gate.reconnects == 0 && gate.dropped > 0, "{}", ingest.log.join("\n"));
    assert!(!parse_records(records.try_iter().collect::<Vec<_>>().iter().map(String::as_str)).is_empty());
    // Whoever reads goes away, as `head` does.
    drop(records);
    assert_eq!(ingest.wait().code(), Some(1));
    assert!(
        ingest.log.iter().any(|line| line == "error: standard output is closed"),
        "{}",
        ingest.log.join("\n")
    );
}

#[test]
fn a_camera_never_waits_for_the_detector() {
    let server = Camera::street();
    let camera = named("gate", &server.uri("street"));
    // Every frame would be inferred, which no processor does 25 times a second on four cameras.
    let others: Vec<_> = (1..4).map(|other| format!("gate{other}={}", server.uri("street"))).collect();
    let others: Vec<_> = others.iter().map(String::as_str).collect();
    let calm = ["--model", &yolo12n(), "--set", "threads=1", "--set", "overload=block", &camera];
    let mut ingest = Ingest::start(&[&calm[..], &others].concat());
    ingest.until("some frames find no room", |ingest| ingest.report("gate").dropped > 100);
    let gate = ingest.report("gate");
    ingest.quit();
    // What is inferred is of late: nothing piles up.
    let records = ingest.records("gate");
    let last = records.last().unwrap();
    assert_eq!(last["status"], "inferred");
    assert!(last["time"].as_f64().unwrap() * 25.0 > gate.frames as f64 / 2.0, "{last} after {gate:?}");
    ingest.assert_continuous("gate");
}

#[test]
fn a_detection_that_fails_starts_anew() {
    let server = Camera::street();
    let camera = named("gate", &server.uri("street"));
    let folder = tempfile::tempdir().unwrap();
    let (out, file) = (folder.path().display().to_string(), folder.path().join("gate.jsonl"));
    // A disk without room.
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    let mut ingest = Ingest::spawn(folder, &["--model", &model(), "--out", &out, &camera]);
    ingest.until_said("gate: detection failed: ");
    ingest.until("the status says so", |ingest| ingest.report("gate").state.starts_with("detection failed"));
    std::fs::remove_file(&file).unwrap();
    ingest.until_frames("gate", 50);
    let inferred = ingest.report("gate").inferred;
    ingest.quit();
    ingest.assert_continuous("gate");
    // Those before the file was there count as well.
    assert!(
        inferred as usize > ingest.records("gate").iter().filter(|r| r["status"] == "inferred").count() / 2
    );
}

#[test]
fn wrong_calls_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (cameras, empty) = (folder.path().join("cameras"), folder.path().join("empty"));
    std::fs::write(&cameras, "# one too many\na=rtsp://h/1\na=rtsp://h/2\n").unwrap();
    std::fs::write(&empty, "").unwrap();
    let (cameras, empty) = (cameras.to_str().unwrap(), empty.to_str().unwrap());
    let (model, camera) = (&model()[..], "rtsp://127.0.0.1:1/");
    let calls: &[(i32, &[&str], &str)] = &[
        (2, &[], "there is no camera"),
        (2, &["not-a-uri"], "not-a-uri is no camera's address"),
        (
            2,
            &["gate=http://admin:hush@host/"],
            "http://***@host/ is no camera's address: it does not begin with rtsp://",
        ),
        (2, &["rtsp://host:port/"], "its port is no number"),
        (2, &["a=rtsp://h/1", "a=rtsp://h/2"], "there are two cameras named a"),
        (2, &["a/b=rtsp://h/1"], "\"a/b\" is no name for a camera"),
        (2, &["--cameras", "/nowhere"], "the cameras file /nowhere cannot be read"),
        (2, &["--cameras", cameras], "cameras, line 3: there are two cameras named a"),
        (2, &[camera, "--cameras"], "--cameras needs a value"),
        (
            2,
            &[camera, "--user", "a", "--password-file", "/nowhere"],
            "the password file /nowhere cannot be read",
        ),
        (2, &[camera, "--password-file", empty], "--password-file needs --user"),
        (2, &[camera, "--loud"], "unknown option --loud"),
        (2, &[camera, "--protocols", "pigeon"], "--protocols is tcp, udp or auto"),
        (2, &[camera, "--latency", "-1"], "--latency takes milliseconds"),
        (2, &[camera, "--stall-timeout", "0"], "--stall-timeout takes seconds"),
        (2, &[camera, "--duration", "1e19"], "--duration takes seconds"),
        (2, &[camera, "--min-backoff", "soon"], "--min-backoff takes seconds"),
        (2, &[camera, "--max-backoff", "0.5"], "--max-backoff is shorter"),
        (2, &[camera, "--set", "threads"], "--set takes PROPERTY=VALUE"),
        (
            1,
            &[camera, "--model", model, "--set", "thread=1"],
            "--set thread: yolodetect has no such property",
        ),
        (1, &[camera, "--model", model, "--set", "stats=1"], "--set stats: yolodetect has no such property"),
        (
            1,
            &[camera, "--model", model, "--set", "iou-threshold=5"],
            "iou-threshold=5: not a value that it takes",
        ),
        (1, &[camera, "--model", model, "--set", "head=v99"], "head=v99: not a value that it takes"),
        (1, &[camera, "--model", "/nowhere.onnx"], "the model /nowhere.onnx cannot be read"),
        (1, &[camera, "--detector", "nothing"], "nothing"),
        (1, &[camera, "--model", model, "--out", "/dev/null/x"], "/dev/null/x"),
    ];
    for (status, arguments, expected) in calls {
        let output = call(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(*status), "{arguments:?} says {said}");
        assert!(said.contains("error: ") && said.contains(expected), "{arguments:?} says {said}");
        assert_eq!(*status == 2, said.contains("Usage:"), "{arguments:?} says {said}");
        assert!(!said.contains("hush"), "{arguments:?} says {said}");
    }
    let output = call(&["--help"]);
    assert!(output.status.success() && output.stdout.starts_with(b"Usage:"));
    // No camera yet, but there may come some.
    let output = call(&["--cameras", empty, "--duration", "0.1"]);
    assert!(output.status.success(), "{output:?}");
}

/// Reconnects until memory is compared, and those after which it is looked at: around the first and the last.
const EARLY: u64 = 10;
const LATE: u64 = 100;
const AROUND: u64 = 4;

/// What is granted on top of what the same run takes without the detector, MiB.
const GROWTH: f64 = 5.0;

#[test]
fn a_hundred_reconnects_take_no_memory() {
    let with = growth(&["--model", &model()]);
    let without = growth(&["--detector", "identity"]);
    println!(
        "memory from the {EARLY}th to the {LATE}th reconnect: {with:+.2} MiB, with identity {without:+.2} MiB"
    );
    assert!(with <= without + GROWTH, "{with:.2} MiB, with identity {without:.2} MiB");
}

/// By how much memory grows from the early reconnects to the late ones, MiB; another camera plays all the
/// while.
fn growth(arguments: &[&str]) -> f64 {
    let (mut gate, yard) = (Camera::street(), Camera::street());
    let (gate_is, yard_is) = (named("gate", &gate.uri("street")), named("yard", &yard.uri("street")));
    let quick = ["--min-backoff", "0.05", "--max-backoff", "0.1", "--status-interval", "0.1"];
    let mut ingest = Ingest::start(&[&quick, arguments, &[&gate_is, &yard_is]].concat());
    ingest.until("both play", |ingest| {
        ["gate", "yard"].iter().all(|name| ingest.report(name).state == "playing")
    });
    let other = Undisturbed::new(&ingest, "yard");
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for reconnect in 1..=LATE + AROUND {
        let (frames, others) = (ingest.report("gate").frames, ingest.report("yard").frames);
        gate.tell("kick");
        ingest.watch(
            &format!("reconnect {reconnect}"),
            |ingest| other.check(ingest),
            |ingest| {
                let gate = ingest.report("gate");
                assert!(gate.reconnects <= reconnect, "{}", ingest.log.join("\n"));
                gate.reconnects == reconnect
                    && gate.frames > frames + 2
                    && ingest.report("yard").frames > others
            },
        );
        if reconnect.abs_diff(EARLY) <= AROUND {
            early.push(ingest.resident());
        }
        if reconnect.abs_diff(LATE) <= AROUND {
            late.push(ingest.resident());
        }
    }
    ingest.quit();
    median(late) - median(early)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

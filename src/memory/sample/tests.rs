use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// A machine of files: `proc` beside the hierarchies that its `mountinfo` names.
struct Fixture(TempDir);

const MACHINE: u64 = 16_000_000_000;
const UNLIMITED_V1: &str = "9223372036854771712\n";

impl Fixture {
    fn new() -> Self {
        // The blank is written as \040 in mountinfo.
        Self(tempfile::Builder::new().prefix("two words").tempdir().unwrap())
    }

    fn write(&self, file: &str, text: &str) -> &Self {
        let file = self.0.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        self
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.0.path().join(file)).unwrap();
    }

    /// Mounts `root` of a hierarchy at `point`.
    fn mount(&self, lines: &[(&str, &str, &str)]) -> &Self {
        let point = |point| self.0.path().join(point).display().to_string().replace(' ', "\\040");
        let text: String = lines
            .iter()
            .map(|(system, root, at)| {
                format!("31 23 0:28 {root} {} rw,nosuid shared:9 - {system}\n", point(at))
            })
            .collect();
        self.write("proc/self/mountinfo", &format!("23 27 0:22 / /sys rw - sysfs sysfs rw\n{text}27 1\n"))
    }

    fn v1(&self, group: &str, usage: u64, inactive: u64, limit: &str) -> &Self {
        let stat = format!(
            "cache 7\ninactive_file 1\ntotal_cache 8\ntotal_inactive_file {inactive}\ntotal_dirty 0\n"
        );
        self.write(&format!("{group}/memory.limit_in_bytes"), limit)
            .write(&format!("{group}/memory.usage_in_bytes"), &format!("{usage}\n"))
            .write(&format!("{group}/memory.stat"), &stat)
    }

    fn v2(&self, group: &str, usage: u64, inactive: u64, limit: &str) -> &Self {
        self.write(&format!("{group}/memory.max"), limit)
            .write(&format!("{group}/memory.current"), &format!("{usage}\n"))
            .write(&format!("{group}/memory.stat"), &format!("anon 3\ninactive_file {inactive}\n"))
    }

    fn proc(&self) -> std::path::PathBuf {
        self.0.path().join("proc")
    }

    fn cgroup_with(&self, cgroups: &mut Cgroups) -> Option<Cgroup> {
        cgroups.sample(&mut Text::default(), &self.proc(), Some(MACHINE))
    }

    fn cgroup(&self) -> Option<(u64, u64)> {
        self.cgroup_with(&mut Cgroups::default()).map(|cgroup| (cgroup.used, cgroup.limit))
    }
}

const V1: &str = "cgroup cgroup rw,memory";
const V2: &str = "cgroup2 cgroup2 rw,nsdelegate";

#[test]
fn a_limit_of_version_1_counts_without_reclaimable_cache() {
    let fixture = Fixture::new();
    fixture.mount(&[("cgroup cgroup rw,cpu", "/", "cpu"), (V1, "/", "memory"), (V2, "/", "unified")]);
    fixture.write("proc/self/cgroup", "9:name=systemd:/\n5:cpu:/else\n4:hugetlb,memory:/a/b\n0::/\n");
    fixture.v1("memory/a/b", 900, 100, "2000\n").v1("memory", 5000, 0, UNLIMITED_V1);
    assert_eq!(fixture.cgroup(), Some((800, 2000)));
}

#[test]
fn a_limit_of_version_2_counts_with_its_pressure() {
    let fixture = Fixture::new();
    fixture.mount(&[(V2, "/", "cgroup")]).write("proc/self/cgroup", "0::/kubepods/pod 1:x\n");
    fixture.v2("cgroup/kubepods/pod 1:x", 900, 100, "2000\n").write(
        "cgroup/kubepods/pod 1:x/memory.pressure",
        "some avg10=12.50 avg60=3.00 avg300=0.00 total=9\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=3\n",
    );
    let sampled = fixture.cgroup_with(&mut Cgroups::default());
    assert_eq!(sampled, Some(Cgroup { used: 800, limit: 2000, stall: Some(12.5) }));
}

#[test]
fn of_nested_groups_the_fullest_counts() {
    let fixture = Fixture::new();
    fixture.mount(&[(V2, "/", "cgroup")]).write("proc/self/cgroup", "0::/outer/inner\n");
    fixture.v2("cgroup/outer/inner", 500, 0, "max\n").v2("cgroup/outer", 900, 0, "4000\n");
    assert_eq!(fixture.cgroup(), Some((900, 4000)));
    fixture.v2("cgroup/outer/inner", 500, 0, "1000\n");
    assert_eq!(fixture.cgroup(), Some((500, 1000)));
    // Neighbours in the outer group bring that to its limit first.
    fixture.v2("cgroup/outer", 3900, 0, "4000\n");
    assert_eq!(fixture.cgroup(), Some((3900, 4000)));
}

#[test]
fn a_container_sees_its_own_group_as_the_root() {
    for (root, group) in [
        // Its part of the hierarchy is mounted, and named as the host names it.
        ("/docker/1f", "/docker/1f"),
        // A namespace of its own, in which it is the root.
        ("/", "/"),
        // The host's name, which does not exist here.
        ("/", "/docker/1f"),
        // Outside of the namespace's root.
        ("/", "/../../else"),
        ("/..", "/"),
    ] {
        let fixture = Fixture::new();
        fixture.mount(&[(V2, root, "cgroup")]).write("proc/self/cgroup", &format!("0::{group}\n"));
        fixture.v2("cgroup", 900, 100, "2000\n").v2("else", 1, 0, "1\n");
        assert_eq!(fixture.cgroup(), Some((800, 2000)), "{root} {group}");
    }
    // A group below the container's.
    let fixture = Fixture::new();
    fixture.mount(&[(V1, "/docker/1f", "memory")]).write("proc/self/cgroup", "4:memory:/docker/1f/job\n");
    fixture.v1("memory/job", 900, 100, "2000\n").v1("memory", 950, 0, UNLIMITED_V1);
    assert_eq!(fixture.cgroup(), Some((800, 2000)));
}

#[test]
fn no_limit_is_no_container() {
    for limit in ["max\n", UNLIMITED_V1, "16000000000\n", "18446744073709551615\n", "0\n"] {
        let fixture = Fixture::new();
        fixture.mount(&[(V2, "/", "two"), (V1, "/", "one")]);
        fixture.write("proc/self/cgroup", "4:memory:/\n0::/\n");
        fixture.v1("one", 900, 100, limit).v2("two", 900, 100, limit);
        assert_eq!(fixture.cgroup(), None, "{limit}");
        // Nobody knows how much the machine has.
        let unknown = Cgroups::default().sample(&mut Text::default(), &fixture.proc(), None);
        assert_eq!(unknown.is_some(), limit.starts_with("16"), "{limit}");
    }
}

#[test]
fn odd_and_missing_files_are_no_container() {
    let whole = || {
        let fixture = Fixture::new();
        fixture.mount(&[(V2, "/", "cgroup")]).write("proc/self/cgroup", "0::/a\n");
        fixture.v2("cgroup/a", 900, 100, "2000\n");
        fixture
    };
    assert_eq!(whole().cgroup(), Some((800, 2000)));
    let files = ["proc/self/cgroup", "proc/self/mountinfo", "cgroup/a/memory.max", "cgroup/a/memory.current"];
    for file in files {
        for garbage in ["", "\n", "-1", "much", "::::\n - - - \n", "0:", "2000 2000", "\0\0"] {
            let fixture = whole();
            fixture.write(file, garbage);
            assert_eq!(fixture.cgroup(), None, "{file} {garbage:?}");
        }
        let fixture = whole();
        fs::write(fixture.0.path().join(file), [0xff, 0xfe, b'0']).unwrap();
        assert_eq!(fixture.cgroup(), None, "{file}");
        fixture.remove(file);
        assert_eq!(fixture.cgroup(), None, "{file}");
    }
    // Without statistics there is no cache to take off; more cache than usage leaves nothing.
    for (stat, used) in
        [("", 900), ("inactive_file\n", 900), ("inactive_file x\n", 900), ("inactive_file 5000\n", 0)]
    {
        let fixture = whole();
        fixture.write("cgroup/a/memory.stat", stat);
        assert_eq!(fixture.cgroup(), Some((used, 2000)), "{stat:?}");
    }
}

#[test]
fn files_may_vanish_and_change_while_sampling() {
    let fixture = Fixture::new();
    fixture.mount(&[(V2, "/", "cgroup")]).write("proc/self/cgroup", "0::/a\n");
    fixture.v2("cgroup/a", 900, 100, "2000\n").v2("cgroup/b", 90, 10, "200\n");
    let mut cgroups = Cgroups::default();
    let mut sample = || fixture.cgroup_with(&mut cgroups).map(|cgroup| (cgroup.used, cgroup.limit));
    assert_eq!(sample(), Some((800, 2000)));
    fixture.write("cgroup/a/memory.max", "3000\n");
    assert_eq!(sample(), Some((800, 3000)));
    fixture.remove("cgroup/a/memory.current");
    assert_eq!(sample(), None);
    fixture.v2("cgroup/a", 1000, 100, "max\n");
    assert_eq!(sample(), None);
    // The process is moved.
    fixture.write("proc/self/cgroup", "0::/b\n");
    assert_eq!(sample(), Some((80, 200)));
    fs::remove_dir_all(fixture.0.path().join("cgroup")).unwrap();
    assert_eq!(sample(), None);
}

#[test]
fn the_resident_set_and_its_anonymous_part_are_read_from_statm() {
    let fixture = Fixture::new();
    let read = |text: &str| {
        fixture.write("proc/self/statm", text);
        Process::read(&mut Text::default(), &fixture.proc().join("self/statm"))
    };
    let page = read("9 1 0 0 0 0 0\n").unwrap().resident;
    assert!(page.is_power_of_two() && page >= 4096, "{page}");
    assert_eq!(read("900 300 100 5 0 7 0\n"), Some(Process { resident: 300 * page, anonymous: 200 * page }));
    assert_eq!(read("900 100 300 5 0 7 0\n"), Some(Process { resident: 100 * page, anonymous: 0 }));
    let most = read("1 18446744073709551615 1").unwrap();
    assert_eq!(most.resident, u64::MAX);
    for garbage in ["", "900", "900 300", "900 x 100", "900 -1 100", "900 18446744073709551616 1"] {
        assert_eq!(read(garbage), None, "{garbage:?}");
    }
}

#[test]
fn stalls_are_shares() {
    let fixture = Fixture::new();
    let stall = |text: &str| {
        fixture.write("proc/pressure/memory", text);
        procfs::stall(&mut Text::default(), &fixture.proc().join("pressure/memory"))
    };
    assert_eq!(stall("some avg10=1.25 avg60=0.00 avg300=0.00 total=0\nfull avg10=9.00\n"), Some(1.25));
    for garbage in [
        "",
        "full avg10=9.00\n",
        "some\n",
        "some avg10=\n",
        "some avg10=NaN x\n",
        "some avg10=-1\n",
        "some avg10=101 \n",
    ] {
        assert_eq!(stall(garbage), None, "{garbage:?}");
    }
    assert_eq!(procfs::stall(&mut Text::default(), Path::new("/proc/no/such/file")), None);
}

#[test]
fn a_machine_without_procfs_is_sampled_without_a_panic() {
    let empty = tempfile::tempdir().unwrap();
    let mut sample = Sample { resident: 7, anonymous: 7, ..Sample::default() };
    sample.cgroup = Some(Cgroup::default());
    SystemSampler::new(empty.path()).sample(&mut sample);
    assert_eq!((sample.resident, sample.anonymous, sample.cgroup), (0, 0, None));
    assert_eq!(sample.system.and_then(|system| system.stall), None);
}

#[test]
fn this_machine_is_sampled() {
    let mut sampler = SystemSampler::default();
    let mut sample = Sample::default();
    sampler.sample(&mut sample);
    sampler.sample(&mut sample);
    println!("{sample:#?}");
    if cfg!(target_os = "linux") {
        assert!(sample.anonymous > 100_000 && sample.resident > sample.anonymous, "{sample:?}");
        let system = sample.system.unwrap();
        assert!(system.total > sample.resident && system.available < system.total, "{sample:?}");
        if let Some(cgroup) = sample.cgroup {
            assert!(cgroup.limit < system.total, "{sample:?}");
        }
    }
}

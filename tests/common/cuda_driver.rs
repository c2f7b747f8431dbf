//! A stand-in for NVIDIA's driver (`tests/data/cuda_stand_in.c`) and for libraries beside it, in a folder where the loader of another process
//! looks first. Whatever is loaded stays loaded, so each test runs in a process of its own:
//!
//! ```ignore
//! fn a_test() {
//!     if beside("a_test", |folder| { folder.driver(&[]); folder.library("libcudart.so.13", &[]); }) {
//!         control("count=2");
//!         …
//!         assert!(balance().is_empty());
//!     }
//! }
//! ```
#![allow(dead_code)]

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::common::{another_process, is_child};

/// The variables of the stand-in.
const CONTROL: &str = "CUDA_STAND_IN";
const LOG: &str = "CUDA_STAND_IN_LOG";

pub const DRIVER: &str = "libcuda.so.1";

/// The loader's first folder, and the files that control the driver; gone when dropped.
pub struct Folder {
    folder: TempDir,
}

impl Folder {
    pub fn new() -> Self {
        let folder = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(folder.link()).unwrap();
        fs::write(folder.control_file(), "").unwrap();
        fs::write(folder.log_file(), "").unwrap();
        folder
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Builds the driver's library, with options of the compiler.
    pub fn driver(&self, options: &[&str]) -> PathBuf {
        self.stand_in(DRIVER, "cuda", options)
    }

    /// Builds NVIDIA's compiler.
    pub fn compiler(&self) -> PathBuf {
        self.stand_in("libnvrtc.so.13", "nvrtc", &[])
    }

    /// Builds what GStreamer's elements for CUDA want: a driver with more functions, and a decoder's library that decodes nothing.
    pub fn for_gstreamer(&self) {
        const DECODER: [&str; 13] = [
            "CtxLockCreate",
            "CtxLockDestroy",
            "CtxLock",
            "CtxUnlock",
            "CreateDecoder",
            "DestroyDecoder",
            "DecodePicture",
            "CreateVideoParser",
            "ParseVideoData",
            "DestroyVideoParser",
            "MapVideoFrame64",
            "UnmapVideoFrame64",
            "GetDecoderCaps",
        ];
        self.driver(&["-DFOR_GSTREAMER"]);
        let functions = DECODER.map(|name| format!("int cuvid{name}(void) {{ return 801; }}\n"));
        let source = self.path().join("decoder.c");
        fs::write(&source, functions.concat()).unwrap();
        self.library_with("libnvcuvid.so.1", &[], &[source.to_str().unwrap()]);
    }

    /// Builds NVIDIA's management library.
    pub fn nvml(&self) -> PathBuf {
        self.stand_in("libnvidia-ml.so.1", "nvml", &[])
    }

    fn stand_in(&self, name: &str, of: &str, options: &[&str]) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{of}_stand_in.c"));
        let library = self.path().join(name);
        compile(&library, &[&["-pthread"], options].concat(), &[&source]);
        library
    }

    /// Builds a library that does nothing, called `name`, and needs others: these need not be there yet. `name` may have a
    /// folder before it.
    pub fn library(&self, name: &str, needed: &[&str]) -> PathBuf {
        self.library_with(name, needed, &[])
    }

    /// The same with options of the compiler.
    pub fn library_with(&self, name: &str, needed: &[&str], options: &[&str]) -> PathBuf {
        let library = self.path().join(name);
        fs::create_dir_all(library.parent().unwrap()).unwrap();
        // To link with a library, there must be one.
        for name in needed {
            let stub = self.link().join(name);
            if !stub.exists() {
                empty(&stub, name, &[]);
            }
        }
        let mut options: Vec<_> = options.iter().map(ToString::to_string).collect();
        options.extend([format!("-L{}", self.link().display()), "-Wl,--no-as-needed".into()]);
        options.extend(needed.iter().map(|name| format!("-l:{name}")));
        let soname = Path::new(name).file_name().and_then(OsStr::to_str).unwrap();
        empty(&library, soname, &options);
        library
    }

    /// Source of kernels as machine code for these kinds of GPUs, to be built into a library.
    pub fn kernels(&self, kinds: &[u32]) -> PathBuf {
        let entries = kinds.iter().map(|kind| format!("{{2, 0x101, 40, 8, {{0}}, {kind}, {{0}}, 0}},"));
        let source = format!(
            "struct entry {{ unsigned short kind, version; unsigned head; unsigned long long length; char more[12]; unsigned made_for;
                             char rest[8]; unsigned long long kernel; }};
             __attribute__((section(\".nv_fatbin\"), aligned(8), used)) const struct {{
                 unsigned magic; unsigned short version, head; unsigned long long length; struct entry entries[{count}];
             }} container = {{0xba55ed50, 1, 16, sizeof(struct entry) * {count}, {{{entries}}}}};",
            count = kinds.len(),
            entries = entries.collect::<String>(),
        );
        let file = self.path().join("kernels.c");
        fs::write(&file, source).unwrap();
        file
    }

    /// What a child needs to find all that.
    pub fn variables(&self) -> [(&'static str, String); 3] {
        let text = |path: &Path| path.to_str().unwrap().to_string();
        [
            ("LD_LIBRARY_PATH", text(self.path())),
            (CONTROL, text(&self.control_file())),
            (LOG, text(&self.log_file())),
        ]
    }

    /// How the driver behaves from its next call on.
    pub fn control(&self, text: &str) {
        fs::write(self.control_file(), text).unwrap();
    }

    /// The driver's lines, after the processes that used it.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap()
    }

    /// Runs `test` again in a process that looks here; with ONNX Runtime's `library`, where there is one, and more variables.
    pub fn run(&self, test: &str, library: Option<&Path>, more: &[(&str, &str)]) -> Output {
        let variables = self.variables();
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .chain(more.iter().copied())
            .collect();
        another_process(test, library, &variables)
    }

    fn link(&self) -> PathBuf {
        self.path().join("link")
    }

    fn control_file(&self) -> PathBuf {
        self.path().join("control")
    }

    fn log_file(&self) -> PathBuf {
        self.path().join("log")
    }
}

fn empty(library: &Path, soname: &str, options: &[String]) {
    let soname = format!("-Wl,-soname,{soname}");
    let mut all = vec!["-nostdlib", &soname, "-x", "c", "/dev/null"];
    all.extend(["-x", "none"]);
    all.extend(options.iter().map(String::as_str));
    compile(library, &all, &[]);
}

fn compile(library: &Path, options: &[&str], sources: &[&Path]) {
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(library).args(sources).args(options);
    let output = compiler.output().expect("cc");
    assert!(output.status.success(), "{compiler:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `test` again beside the folder that `prepare` fills. True in that process.
pub fn beside(test: &str, prepare: impl FnOnce(&Folder)) -> bool {
    beside_with(test, &[], prepare)
}

/// The same with environment variables.
pub fn beside_with(test: &str, variables: &[(&str, &str)], prepare: impl FnOnce(&Folder)) -> bool {
    if is_child() {
        return true;
    }
    let folder = Folder::new();
    prepare(&folder);
    let output = folder.run(test, None, variables);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}\n{}", folder.log());
    assert!(out.contains("1 passed"), "{out}");
    assert_eq!(err, "", "nothing is said where nobody can do anything about it");
    false
}

/// The folder, in the child.
pub fn folder() -> PathBuf {
    Path::new(&env::var_os(CONTROL).unwrap()).parent().unwrap().to_path_buf()
}

/// How the driver behaves from its next call on; in the child.
pub fn control(text: &str) {
    fs::write(env::var_os(CONTROL).unwrap(), text).unwrap();
}

/// The driver's lines up to now; in the child.
pub fn log() -> Vec<String> {
    let text = fs::read_to_string(env::var_os(LOG).unwrap()).unwrap();
    text.lines().map(Into::into).collect()
}

/// What is on the driver's GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    pub contexts: usize,
    pub allocations: usize,
    /// Of the allocations.
    pub bytes: usize,
    pub pinned: usize,
    pub pins: usize,
    pub streams: usize,
    pub events: usize,
    pub modules: usize,
}

impl Balance {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// From the driver's lines; nothing is there before the first of them that tells.
    pub fn latest<'a>(log: impl Iterator<Item = &'a str>) -> Self {
        log.filter(|line| line.starts_with("contexts=")).last().map(Self::read).unwrap_or_default()
    }

    fn read(line: &str) -> Self {
        let value = |name: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.unwrap_or_else(|| panic!("no {name} in {line}")).parse().unwrap()
        };
        Self {
            contexts: value("contexts"),
            allocations: value("allocations"),
            bytes: value("bytes"),
            pinned: value("pinned"),
            pins: value("pins"),
            streams: value("streams"),
            events: value("events"),
            modules: value("modules"),
        }
    }
}

/// What is on the driver's GPUs now; in the child.
pub fn balance() -> Balance {
    Balance::latest(log().iter().map(String::as_str))
}

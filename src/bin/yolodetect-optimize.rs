//! `yolodetect-optimize`: fills the cache of optimised models that `yolodetect` starts from. The element starts it by itself
//! where an entry is missing; by hand it prepares a machine or an image of one.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;
use std::time::Duration;

use gstyolodetect::batch::Ledger;
use gstyolodetect::decode::Head;
use gstyolodetect::engine::cache::{Entry, Figures, Readers, place, store, system, writer};
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::onnx::{OnnxEngine, SessionOptions, optimize};
use gstyolodetect::engine::plan::{Hint, Plan};
use gstyolodetect::engine::{Engine, hash, runtime};
use gstyolodetect::memory::{self, budget::HOST};
use gstyolodetect::tensor::BatchTensor;

const USAGE: &str = "\
Usage: yolodetect-optimize [OPTION]... MODEL...

Writes the form that ONNX Runtime optimises each MODEL (an ONNX file) to into the
cache that the GStreamer element yolodetect starts from, and replaces what is there
already. Every user may read what is written (folders on the way are made as the
umask says); an element uses what is its own user's or root's.

  --cache FOLDER              the element's model-cache (otherwise the environment
                              variable YOLODETECT_MODEL_CACHE, then yolodetect in
                              XDG_CACHE_HOME or ~/.cache)
  --onnxruntime-library FILE  the element's (otherwise the environment variable
                              ORT_DYLIB_PATH, then the loader's path)
  --threads N                 the element's (0: one per processor, the default)
  --max-batch N               the element's: with more frames than this (default 1),
                              it runs the model once more when it starts
  --head HEAD                 the element's, where the model does not say it: v5, v8,
                              end2end or yolox
  --limit MB                  most that the cache may hold, in 10^6 bytes; what was
                              not used for longest goes, of this command's own
                              models too (default 2000)
  --help                      this text

The element itself adds:
  --background                at a low priority, for two minutes at most, and for
                              nobody else to read
  --key KEY                   the one entry that is wanted; nothing else is written
  --warm-run NS               how long a run takes, which a low priority does not tell

Exit status: 0 when every model is in the cache, 1 when one is not, 2 for wrong use.
";

#[derive(Debug, Default)]
struct Arguments {
    cache: Option<PathBuf>,
    library: Option<PathBuf>,
    threads: usize,
    max_batch: usize,
    head: Option<Head>,
    limit: Option<u64>,
    background: bool,
    key: Option<String>,
    warm_run: Option<Duration>,
    models: Vec<PathBuf>,
}

/// `None` where help is asked for.
fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Arguments>, String> {
    let mut parsed = Arguments { max_batch: 1, ..Default::default() };
    let mut only_models = false;
    while let Some(argument) = arguments.next() {
        let name = argument.to_string_lossy().into_owned();
        if only_models || !name.starts_with('-') {
            parsed.models.push(argument.into());
            continue;
        }
        let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value"));
        let text = |value: OsString| value.into_string().map_err(|_| format!("{name} needs a text"));
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--" => only_models = true,
            "--background" => parsed.background = true,
            "--cache" => parsed.cache = Some(value()?.into()),
            "--onnxruntime-library" => parsed.library = Some(value()?.into()),
            "--threads" => parsed.threads = number(&name, &text(value()?)?)?,
            "--max-batch" => parsed.max_batch = number(&name, &text(value()?)?)?,
            "--head" => {
                let nick = text(value()?)?;
                let head = Head::ALL.into_iter().find(|head| head.nick() == nick);
                parsed.head =
                    Some(head.ok_or_else(|| format!("--head {nick} is none of v5, v8, end2end, yolox"))?);
            }
            "--limit" => {
                let megabytes: u64 = number(&name, &text(value()?)?)?;
                parsed.limit = Some(megabytes.saturating_mul(1_000_000));
            }
            "--key" => parsed.key = Some(text(value()?)?),
            "--warm-run" => {
                parsed.warm_run = Some(Duration::from_nanos(number(&name, &text(value()?)?)?));
            }
            _ => return Err(format!("there is no option {name}")),
        }
    }
    match parsed.models.len() {
        0 => Err("no model is named".into()),
        1 => Ok(Some(parsed)),
        _ if parsed.key.is_some() || parsed.warm_run.is_some() => {
            Err("--key and --warm-run are those of a single model".into())
        }
        _ => Ok(Some(parsed)),
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{name} {text} is not a number"))
}

fn main() -> ExitCode {
    let parsed = parse(env::args_os().skip(1)).and_then(|parsed| parsed.map(Arguments::absolute).transpose());
    let arguments = match parsed {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("yolodetect-optimize: {error}; --help shows how it is used");
            return ExitCode::from(2);
        }
    };
    if arguments.background {
        system::go_to_background(writer::PATIENCE);
    }
    let mut exit = ExitCode::SUCCESS;
    for model in &arguments.models {
        match cache(model, &arguments) {
            Ok(done) => println!("{}: {done}", model.display()),
            Err(error) => {
                eprintln!("yolodetect-optimize: {}: {error}", model.display());
                exit = ExitCode::FAILURE;
            }
        }
    }
    exit
}

impl Arguments {
    /// With paths that mean the same whatever the current folder is.
    fn absolute(self) -> Result<Self, String> {
        let whole = |path: PathBuf| absolute(&path).map_err(|error| format!("{}: {error}", path.display()));
        let said = |folder: &PathBuf| !folder.as_os_str().is_empty() && folder.as_os_str() != place::OFF;
        let cache = match self.cache {
            Some(folder) => Some(folder).filter(said),
            None => place::folder(None),
        };
        Ok(Self {
            cache: cache.map(whole).transpose()?,
            library: self.library.map(whole).transpose()?,
            models: self.models.into_iter().map(whole).collect::<Result<_, _>>()?,
            ..self
        })
    }
}

fn cache(model: &Path, arguments: &Arguments) -> Result<String, String> {
    let folder = arguments.cache.as_deref().ok_or("there is no cache: name a folder with --cache")?;
    let library = arguments.library.as_deref();
    runtime::environment(library).map_err(|error| error.to_string())?;
    // What is hashed is what is optimised, whatever becomes of the file.
    let content = fs::read(model).map_err(|error| format!("it cannot be read: {error}"))?;
    let (_, key) =
        optimize::library_and_key(hash::of(&content)).ok_or("ONNX Runtime does not say which file it is")?;
    if arguments.key.as_ref().is_some_and(|wanted| *wanted != key.name()) {
        return Err("it is not the model, or this is not the ONNX Runtime, that is asked for".into());
    }
    let place = folder.join(key.name());
    if arguments.background && Entry::open(folder, &key).is_ok() {
        return Ok(format!("{} is sound", place.display()));
    }
    // First, while this process has not had memory that it would take again.
    let figures = load(model, arguments, None)?.figures().clone();
    let figures = Figures { warm_run: arguments.warm_run.unwrap_or(figures.warm_run), ..figures };
    memory::return_free_heap();
    let failed = |error: std::io::Error| format!("{} cannot be written: {error}", place.display());
    let readers = if arguments.background { Readers::Nobody } else { Readers::Everybody };
    let draft = store::Draft::new(folder, readers).map_err(failed)?;
    // Where a model that is not whole would look for its weights.
    env::set_current_dir(draft.folder()).map_err(failed)?;
    let written = optimize::optimize(library, &content, draft.folder());
    let _ = env::set_current_dir("/");
    written.map_err(|error| error.to_string())?;
    drop(content);
    draft.complete(&key, &figures).map_err(failed)?;
    let entry = Entry::at(draft.folder().into(), &key).map_err(|rejected| rejected.to_string())?;
    run(&load(model, arguments, Some(&entry))?)?;
    if !arguments.background && place.exists() {
        // It may be for other threads or frames, or for nobody else to read.
        store::discard(folder, &key).map_err(failed)?;
    }
    draft.publish(&key).map_err(failed)?;
    let untidy = store::tidy(folder, arguments.limit.unwrap_or(store::LIMIT), &key).err();
    let untidy = untidy.map(|error| format!("; what is old stays: {error}")).unwrap_or_default();
    Ok(format!("{} is new{untidy}", place.display()))
}

/// Loads the model as the element does, from the `entry` where there is one.
fn load(model: &Path, arguments: &Arguments, entry: Option<&Entry>) -> Result<OnnxEngine, String> {
    let threads = match arguments.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let options = SessionOptions {
        model: model.into(),
        library: arguments.library.clone(),
        head: arguments.head,
        gpu: Default::default(),
        gpu_limit: None,
        tensorrt_cache: None,
        device: Device::Cpu,
        plan: Plan::new(Hint::Auto, threads, 1),
    };
    let mut ledger = Ledger::new(&HOST, "model");
    OnnxEngine::load_from(&options, entry, arguments.max_batch, &mut ledger)
        .map_err(|error| error.to_string())
}

/// Once, which figures may have stood in for.
fn run(engine: &OnnxEngine) -> Result<(), String> {
    let frames = engine.spec().batch.capacity(1);
    let mut batch = BatchTensor::new(frames, engine.spec().input).map_err(|error| error.to_string())?;
    engine.run(&mut batch, 0..frames, &mut |_| ()).map_err(|error| error.to_string())
}

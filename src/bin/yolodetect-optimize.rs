//! `yolodetect-optimize`: fills the cache of optimised models that `yolodetect` starts from. The element starts it by itself
//! where an entry is missing; by hand it prepares a machine or an image of one.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;

use gstyolodetect::batch::Ledger;
use gstyolodetect::engine::cache::{Entry, Figures, place, store, system, writer};
use gstyolodetect::engine::device::Device;
use gstyolodetect::engine::onnx::{OnnxEngine, SessionOptions, optimize};
use gstyolodetect::engine::plan::{Hint, Plan};
use gstyolodetect::engine::{hash, runtime};
use gstyolodetect::memory::budget::HOST;

const USAGE: &str = "\
Usage: yolodetect-optimize [OPTION]... MODEL...

Writes the form that ONNX Runtime optimises each MODEL (an ONNX file) to into the
cache that the GStreamer element yolodetect starts from. What is there already and
sound stays as it is.

  --cache FOLDER              the element's model-cache (otherwise the environment
                              variable YOLODETECT_MODEL_CACHE, then yolodetect in
                              XDG_CACHE_HOME or ~/.cache)
  --onnxruntime-library FILE  the element's (otherwise the environment variable
                              ORT_DYLIB_PATH, then the loader's path)
  --threads N                 the element's (0: one per processor, the default)
  --limit MB                  most that the cache may hold, in 10^6 bytes; what was
                              not used for longest goes (default 2000)
  --help                      this text

The element itself adds:
  --background                at a low priority, for two minutes at most
  --key KEY                   the one entry that is wanted; nothing else is written
  --figures JSON              what is known of the model: it is not run

Exit status: 0 when every model is in the cache, 1 when one is not, 2 for wrong use.
";

#[derive(Debug, Default)]
struct Arguments {
    cache: Option<PathBuf>,
    library: Option<PathBuf>,
    threads: usize,
    limit: Option<u64>,
    background: bool,
    key: Option<String>,
    figures: Option<Figures>,
    models: Vec<PathBuf>,
}

/// `None` where help is asked for.
fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Arguments>, String> {
    let mut parsed = Arguments::default();
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
            "--limit" => {
                let megabytes: u64 = number(&name, &text(value()?)?)?;
                parsed.limit = Some(megabytes.saturating_mul(1_000_000));
            }
            "--key" => parsed.key = Some(text(value()?)?),
            "--figures" => {
                let figures = serde_json::from_str(&text(value()?)?).ok();
                let figures = figures.as_ref().and_then(Figures::from_json);
                parsed.figures = Some(figures.ok_or("--figures are not those of a model")?);
            }
            _ => return Err(format!("there is no option {name}")),
        }
    }
    match parsed.models.len() {
        0 => Err("no model is named".into()),
        1 => Ok(Some(parsed)),
        _ if parsed.key.is_some() || parsed.figures.is_some() => {
            Err("--key and --figures are those of a single model".into())
        }
        _ => Ok(Some(parsed)),
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{name} {text} is not a number"))
}

fn main() -> ExitCode {
    let arguments = match parse(env::args_os().skip(1)) {
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

fn cache(model: &Path, arguments: &Arguments) -> Result<String, String> {
    let whole = |path: &Path| absolute(path).map_err(|error| format!("{}: {error}", path.display()));
    let folder = match &arguments.cache {
        Some(folder) => folder.clone(),
        None => place::folder(None).ok_or("there is no cache: name a folder with --cache")?,
    };
    let (folder, model) = (whole(&folder)?, whole(model)?);
    let library = arguments.library.as_deref().map(whole).transpose()?;
    runtime::environment(library.as_deref()).map_err(|error| error.to_string())?;
    // What is hashed is what is optimised, whatever becomes of the file.
    let content = fs::read(&model).map_err(|error| format!("it cannot be read: {error}"))?;
    let (_, key) =
        optimize::library_and_key(hash::of(&content)).ok_or("ONNX Runtime does not say which file it is")?;
    if arguments.key.as_ref().is_some_and(|wanted| *wanted != key.name()) {
        return Err("it is not the model, or this is not the ONNX Runtime, that is asked for".into());
    }
    let place = folder.join(key.name());
    if Entry::open(&folder, &key).is_ok() {
        return Ok(format!("{} is sound", place.display()));
    }
    let figures = match &arguments.figures {
        Some(figures) => figures.clone(),
        None => measure(&model, library.as_deref(), arguments.threads)?,
    };
    let failed = |error: std::io::Error| format!("{} cannot be written: {error}", place.display());
    let draft = store::Draft::new(&folder).map_err(failed)?;
    // Where a model that is not whole would look for its weights.
    env::set_current_dir(draft.folder()).map_err(failed)?;
    let written = optimize::optimize(library.as_deref(), &content, draft.folder());
    let _ = env::set_current_dir("/");
    written.map_err(|error| error.to_string())?;
    draft.publish(&key, &figures).map_err(failed)?;
    store::tidy(&folder, arguments.limit.unwrap_or(store::LIMIT), &key).map_err(failed)?;
    Ok(format!("{} is new", place.display()))
}

/// Loads the model as the element does.
fn measure(model: &Path, library: Option<&Path>, threads: usize) -> Result<Figures, String> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let options = SessionOptions {
        model: model.into(),
        library: library.map(Into::into),
        head: None,
        device: Device::Cpu,
        plan: Plan::new(Hint::Auto, threads, 1),
    };
    let engine = OnnxEngine::load(&options, 1, &mut Ledger::new(&HOST, "model"));
    engine.map(|engine| engine.figures().clone()).map_err(|error| error.to_string())
}

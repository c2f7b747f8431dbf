//! Which device runs a model, of those that a wish allows.
//!
//! | `device` | tried, in this order |
//! | --- | --- |
//! | `auto` | `cuda:0`, where ONNX Runtime was built with it; the CPU |
//! | `cuda:N` | that; with `device-fallback` the CPU |
//! | `tensorrt:N` | that; with `device-fallback` `cuda:N`, then the CPU |
//! | others | that |
//!
//! Where `auto` finds a library without CUDA, it takes the CPU and says so only on a machine that has a GPU; that is no fallback, unless
//! `device-fallback` is switched off. Whenever another device is taken than the first, the user is told why.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::device::Device;
use super::{EngineError, EngineErrorKind};

/// What is asked of the machine.
pub(super) trait Machine {
    /// ONNX Runtime was built with the provider for this GPU.
    fn built_in(&self, device: &Device) -> bool;
    /// Whether the GPU can be used.
    fn check(&self, device: &Device) -> Result<(), EngineError>;
    fn has_gpu(&self) -> bool;
    /// ONNX Runtime's file.
    fn library(&self) -> String;
}

/// Whether another device shall do where the one that was asked for cannot be used, or is lost.
pub(super) fn allows_fallback(asked: &Device, fallback: Option<bool>) -> bool {
    fallback.unwrap_or(*asked == Device::Auto)
}

/// Why a model runs on another device than the first that was to be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    /// Whole sentences for the user.
    pub text: String,
    /// What that comes down to, whatever figures are in it.
    pub causes: Causes,
}

/// The devices that could not be used, and why.
pub(super) type Causes = Vec<(Device, EngineErrorKind)>;

/// What `load` made on the first device on which it could, and why that is not the one that was asked for.
///
/// # Errors
/// Of the only device that is allowed, or of the last one. A file that cannot be read is one on every device.
pub(super) fn choose<T>(
    asked: &Device,
    fallback: Option<bool>,
    machine: &impl Machine,
    mut load: impl FnMut(&Device) -> Result<T, EngineError>,
) -> Result<(T, Option<Elsewhere>), EngineError> {
    let Candidates { first, last, mut failures } = candidates(asked, fallback, machine)?;
    let mut attempt = |device: &Device| {
        if device.gpu().is_some() {
            machine.check(device)?;
        }
        load(device)
    };
    for device in first {
        match attempt(&device) {
            Ok(loaded) => return Ok((loaded, reason(&failures, &device))),
            Err(error) if error.kind == EngineErrorKind::ModelMissing => return Err(error),
            Err(error) => failures.push((device, error)),
        }
    }
    match attempt(&last) {
        Ok(loaded) => Ok((loaded, reason(&failures, &last))),
        Err(error) => Err(EngineError { message: also(error.message, &failures), ..error }),
    }
}

/// To be tried, in this order.
struct Candidates {
    first: Vec<Device>,
    last: Device,
    /// Why another is not among them.
    failures: Vec<(Device, EngineError)>,
}

fn candidates(
    asked: &Device,
    fallback: Option<bool>,
    machine: &impl Machine,
) -> Result<Candidates, EngineError> {
    let allowed = allows_fallback(asked, fallback);
    let only = |device: Device| Candidates { first: Vec::new(), last: device, failures: Vec::new() };
    let or_cpu = |first| Candidates { first, last: Device::Cpu, failures: Vec::new() };
    Ok(match asked {
        Device::Auto => {
            let gpu = Device::Cuda(0);
            match (machine.built_in(&gpu), allowed) {
                (true, true) => or_cpu(vec![gpu]),
                (true, false) => only(gpu),
                (false, _) if !machine.has_gpu() => only(Device::Cpu),
                (false, true) => {
                    let error = without_cuda(&machine.library());
                    Candidates { failures: vec![(gpu, error)], ..only(Device::Cpu) }
                }
                (false, false) => return Err(without_cuda(&machine.library())),
            }
        }
        Device::Cuda(_) if allowed => or_cpu(vec![asked.clone()]),
        Device::TensorRt(gpu) if allowed => or_cpu(vec![asked.clone(), Device::Cuda(*gpu)]),
        device => only(device.clone()),
    })
}

fn without_cuda(library: &str) -> EngineError {
    let message = format!(
        "this machine has a GPU of NVIDIA's, but {library} is an ONNX Runtime without CUDA: `pipelines/setup.sh --cuda` fetches one \
         with it, to be named in the property onnxruntime-library or the environment variable ORT_DYLIB_PATH"
    );
    EngineError::new(EngineErrorKind::Library, message, "")
}

/// The last failure, with those before it.
fn also(mut message: String, failures: &[(Device, EngineError)]) -> String {
    use std::fmt::Write;
    for (device, error) in failures {
        // Text takes whatever is written to it.
        let _ = write!(message, "; before that {device} could not be used: {error}");
    }
    message
}

fn reason(failures: &[(Device, EngineError)], runs: &Device) -> Option<Elsewhere> {
    use std::fmt::Write;
    let mut text = String::new();
    for (device, error) in failures {
        // Text takes whatever is written to it.
        let _ = write!(text, "{device} cannot be used: {error}. ");
    }
    let causes: Causes = failures.iter().map(|(device, error)| (device.clone(), error.kind)).collect();
    (!causes.is_empty()).then(|| Elsewhere {
        text: format!("{text}So {runs} runs the model, which device={runs} does without this warning."),
        causes,
    })
}

/// Loads that failed a moment ago: those who ask together share the outcome, or the second of sixteen elements would wait for
/// sixteen loads.
pub(super) struct Recent<K>(Mutex<Vec<(K, Instant, EngineError)>>);

impl<K: PartialEq> Recent<K> {
    /// Longer than elements of a pipeline take to start, shorter than a user to mend what was wrong.
    const TIME: Duration = Duration::from_secs(10);

    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub fn find(&self, key: &K, now: Instant) -> Option<EngineError> {
        let mut failures = self.0.lock();
        Self::forget(&mut failures, now);
        failures.iter().find(|(of, ..)| of == key).map(|(.., error)| error.clone())
    }

    pub fn note(&self, key: K, now: Instant, error: &EngineError) {
        let mut failures = self.0.lock();
        Self::forget(&mut failures, now);
        failures.retain(|(of, ..)| *of != key);
        failures.push((key, now, error.clone()));
    }

    fn forget(failures: &mut Vec<(K, Instant, EngineError)>, now: Instant) {
        failures.retain(|(_, then, _)| now.saturating_duration_since(*then) < Self::TIME);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// What works of a machine, and what was tried on it.
    #[derive(Default)]
    struct Fake {
        built_in: bool,
        has_gpu: bool,
        checked: Vec<Device>,
        loads: Vec<Device>,
        kind: Option<EngineErrorKind>,
        tried: RefCell<Vec<String>>,
    }

    impl Machine for Fake {
        fn built_in(&self, _: &Device) -> bool {
            self.built_in
        }

        fn check(&self, device: &Device) -> Result<(), EngineError> {
            let well = self.checked.contains(device);
            well.then_some(())
                .ok_or_else(|| EngineError::new(EngineErrorKind::Library, format!("no {device}"), "x"))
        }

        fn has_gpu(&self) -> bool {
            self.has_gpu
        }

        fn library(&self) -> String {
            "lib.so".into()
        }
    }

    impl Fake {
        fn choose(&self, asked: &str, fallback: Option<bool>) -> Result<(String, Option<String>), String> {
            choose(&Device::parse(asked).unwrap(), fallback, self, |device| {
                self.tried.borrow_mut().push(device.to_string());
                let kind = self.kind.unwrap_or(EngineErrorKind::OutOfMemory);
                match self.loads.contains(device) {
                    true => Ok(device.to_string()),
                    false => Err(EngineError::new(kind, format!("{device} fails"), "")),
                }
            })
            .map(|(device, elsewhere)| (device, elsewhere.map(|elsewhere| elsewhere.text)))
            .map_err(|error| error.message)
        }
    }

    const CUDA: Device = Device::Cuda(0);
    const TENSORRT: Device = Device::TensorRt(0);

    fn fake(checked: &[Device], loads: &[Device]) -> Fake {
        Fake { built_in: true, checked: checked.into(), loads: loads.into(), ..Default::default() }
    }

    /// Device, whose checks are well, whose loads, and what comes of it by fallback.
    type Row<'a> = (&'a str, &'a [Device], &'a [Device], [Result<(String, bool), String>; 3]);

    #[test]
    fn each_wish_gets_the_first_device_that_works_for_it() {
        let on = [Some(true), None, Some(false)];
        let ok = |device: &str, told: bool| Ok((device.to_string(), told));
        let no = |message: &str| Err(message.to_string());
        let all = [CUDA, TENSORRT, Device::Cpu];
        let both = "cpu fails; before that cuda:0 could not be used: cuda:0 fails";
        // Whether the check is well, which loads are, and what comes of it with the fallback on, not set, and off.
        let table: [Row; 12] = [
            ("auto", &all, &all, [ok("cuda:0", false), ok("cuda:0", false), ok("cuda:0", false)]),
            ("auto", &[], &all, [ok("cpu", true), ok("cpu", true), no("no cuda:0")]),
            ("auto", &all, &[Device::Cpu], [ok("cpu", true), ok("cpu", true), no("cuda:0 fails")]),
            ("auto", &all, &[], [no(both), no(both), no("cuda:0 fails")]),
            ("cuda", &all, &all, [ok("cuda:0", false), ok("cuda:0", false), ok("cuda:0", false)]),
            ("cuda", &[], &all, [ok("cpu", true), no("no cuda:0"), no("no cuda:0")]),
            ("cuda", &all, &[Device::Cpu], [ok("cpu", true), no("cuda:0 fails"), no("cuda:0 fails")]),
            ("cuda:1", &all, &all, [ok("cpu", true), no("no cuda:1"), no("no cuda:1")]),
            (
                "tensorrt",
                &all,
                &all,
                [ok("tensorrt:0", false), ok("tensorrt:0", false), ok("tensorrt:0", false)],
            ),
            ("tensorrt", &[CUDA], &all, [ok("cuda:0", true), no("no tensorrt:0"), no("no tensorrt:0")]),
            ("tensorrt", &[], &all, [ok("cpu", true), no("no tensorrt:0"), no("no tensorrt:0")]),
            ("cpu", &[], &all, [ok("cpu", false), ok("cpu", false), ok("cpu", false)]),
        ];
        for (asked, checked, loads, outcomes) in table {
            for (fallback, outcome) in on.into_iter().zip(outcomes) {
                let chosen = fake(checked, loads).choose(asked, fallback);
                let chosen = chosen.map(|(device, reason)| (device, reason.is_some()));
                assert_eq!(chosen, outcome, "device={asked}, fallback {fallback:?}");
            }
        }
    }

    #[test]
    fn a_library_without_cuda_is_told_of_only_beside_a_gpu() {
        let mut machine = Fake { loads: vec![CUDA, Device::Cpu], ..Default::default() };
        for fallback in [None, Some(true), Some(false)] {
            assert_eq!(machine.choose("auto", fallback), Ok(("cpu".into(), None)));
        }
        machine.has_gpu = true;
        let (device, reason) = machine.choose("auto", None).unwrap();
        let reason = reason.unwrap();
        assert_eq!(device, "cpu");
        for words in ["cuda:0 cannot be used", "lib.so", "setup.sh --cuda", "device=cpu does without"] {
            assert!(reason.contains(words), "{words}: {reason}");
        }
        assert!(machine.choose("auto", Some(false)).unwrap_err().contains("without CUDA"));
        assert!(!machine.tried.borrow().contains(&"cuda:0".into()));
    }

    #[test]
    fn every_failure_is_told_with_the_way_to_do_without_the_warning() {
        let (device, reason) = fake(&[CUDA], &[Device::Cpu]).choose("tensorrt", Some(true)).unwrap();
        assert_eq!(device, "cpu");
        assert_eq!(
            reason.unwrap(),
            "tensorrt:0 cannot be used: no tensorrt:0 (x). cuda:0 cannot be used: cuda:0 fails. So cpu runs the model, which \
             device=cpu does without this warning."
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_looked_for_once() {
        let machine =
            Fake { kind: Some(EngineErrorKind::ModelMissing), ..fake(&[CUDA, TENSORRT], &[Device::Cpu]) };
        assert_eq!(machine.choose("auto", None), Err("cuda:0 fails".into()));
        assert_eq!(machine.tried.borrow().len(), 1);
    }

    #[test]
    fn a_failure_is_shared_for_a_while_by_those_who_want_the_same() {
        let recent = Recent::new();
        let start = Instant::now();
        let error = EngineError::new(EngineErrorKind::NoBudget, "no", "");
        recent.note(1, start, &error);
        let late = start + Recent::<i32>::TIME;
        let found = |key, now| recent.find(&key, now).map(|error| error.message);
        assert_eq!(found(1, late - Duration::from_millis(1)), Some("no".into()));
        assert_eq!((found(2, start), found(1, late), found(1, start)), (None, None, None));
        // Nor are those kept that nobody asks for.
        for second in 0..60 {
            recent.note(second % 7, start + Duration::from_secs(second), &error);
            assert!(recent.0.lock().len() <= 7);
        }
        recent.note(1, start + Duration::from_secs(99), &error);
        assert_eq!(recent.0.lock().len(), 1);
    }
}

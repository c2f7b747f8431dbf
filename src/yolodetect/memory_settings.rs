//! The properties of `yolodetect` that concern memory.

use gst::glib;
use gst::prelude::*;

use crate::memory::pool::Rules;
use crate::memory::pressure::{GPU_STEPS, PROCESS_STEPS, Steps, Thresholds};

#[derive(Clone, Debug)]
pub struct MemorySettings {
    /// Bytes, of the process; 0 for none.
    pub memory_budget: u64,
    /// Bytes, of each GPU; 0 for four fifths of it.
    pub gpu_memory_budget: u64,
    /// Bytes of the resident set; `None` for the default, which never costs inferences.
    process: [Option<u64>; 3],
    /// Bytes of this process on a GPU.
    gpu: [Option<u64>; 2],
    pub pressure_interval: gst::ClockTime,
    pub pressure_cooldown: gst::ClockTime,
    pub pressure_reactions: bool,
    /// 0 for those held here and what a decoder may hold.
    pub pool_size: u32,
    pub pool_clear: bool,
    pub model_keep_alive: gst::ClockTime,
    /// Frames.
    pub history_size: u32,
    pub metrics_address: Option<String>,
}

const PROCESS_NAMES: [&str; 3] = ["memory-warning", "memory-critical", "memory-emergency"];
const GPU_NAMES: [&str; 2] = ["gpu-memory-warning", "gpu-memory-critical"];

impl Default for MemorySettings {
    fn default() -> Self {
        Self {
            memory_budget: 0,
            gpu_memory_budget: 0,
            process: [None; 3],
            gpu: [None; 2],
            pressure_interval: gst::ClockTime::SECOND,
            pressure_cooldown: 30 * gst::ClockTime::SECOND,
            pressure_reactions: true,
            pool_size: 0,
            pool_clear: false,
            model_keep_alive: gst::ClockTime::ZERO,
            history_size: 1000,
            metrics_address: None,
        }
    }
}

fn unsigned<'a>(
    name: &'a str,
    nick: &'a str,
    blurb: &'a str,
    default: u64,
) -> glib::ParamSpecUInt64Builder<'a> {
    glib::ParamSpecUInt64::builder(name).nick(nick).blurb(blurb).default_value(default)
}

/// In the order in which a reader needs them.
pub fn param_specs() -> Vec<glib::ParamSpec> {
    let default = MemorySettings::default();
    vec![
        unsigned(
            "memory-budget",
            "Memory budget",
            "Most bytes that this process may hold; models, batches and frames in flight keep to it (0: no limit)",
            default.memory_budget,
        )
        .mutable_ready()
        .build(),
        unsigned(
            "gpu-memory-budget",
            "GPU memory budget",
            "Most bytes that this process may hold on each GPU (0: 80 % of it)",
            default.gpu_memory_budget,
        )
        .mutable_ready()
        .build(),
        unsigned(
            PROCESS_NAMES[0],
            "Memory warning",
            "Resident bytes of the process from which on memory pressure is warning",
            PROCESS_STEPS[0],
        )
        .mutable_playing()
        .build(),
        unsigned(
            PROCESS_NAMES[1],
            "Memory critical",
            "Resident bytes of the process from which on it is critical; set by the user, it may cost inferences",
            PROCESS_STEPS[1],
        )
        .mutable_playing()
        .build(),
        unsigned(
            PROCESS_NAMES[2],
            "Memory emergency",
            "Resident bytes of the process from which on it is emergency; set by the user, frames then pass uninferred",
            PROCESS_STEPS[2],
        )
        .mutable_playing()
        .build(),
        unsigned(
            GPU_NAMES[0],
            "GPU memory warning",
            "Bytes of this process on a GPU from which on memory pressure is warning",
            GPU_STEPS[0],
        )
        .mutable_playing()
        .build(),
        unsigned(
            GPU_NAMES[1],
            "GPU memory critical",
            "Bytes of this process on a GPU from which on it is critical; set by the user, it may cost inferences",
            GPU_STEPS[1],
        )
        .mutable_playing()
        .build(),
        unsigned(
            "pressure-interval",
            "Pressure interval",
            "Look at memory this often, in ns; of several elements the shortest counts",
            default.pressure_interval.nseconds(),
        )
        .minimum(gst::ClockTime::MSECOND.nseconds())
        .maximum(gst::ClockTime::from_seconds(3600).nseconds())
        .mutable_playing()
        .build(),
        unsigned(
            "pressure-cooldown",
            "Pressure cooldown",
            "Tell a level that stays this often, and leave it a step at a time after so long below it, in ns",
            default.pressure_cooldown.nseconds(),
        )
        .maximum(gst::ClockTime::from_seconds(24 * 3600).nseconds())
        .mutable_playing()
        .build(),
        glib::ParamSpecBoolean::builder("pressure-reactions")
            .nick("Pressure reactions")
            .blurb("Give memory back and infer less under pressure; else it is only told")
            .default_value(default.pressure_reactions)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("pool-size")
            .nick("Pool size")
            .blurb("Buffers kept in the pool that upstream is offered; half as many more in a burst (0: those held here, and 32 for a decoder)")
            .maximum(4096)
            .default_value(default.pool_size)
            .mutable_ready()
            .build(),
        glib::ParamSpecBoolean::builder("pool-clear")
            .nick("Pool clear")
            .blurb("Overwrite pictures with zeros when their buffers return to the pool")
            .default_value(default.pool_clear)
            .mutable_ready()
            .build(),
        unsigned(
            "model-keep-alive",
            "Model keep-alive",
            "Keep the engine this long after its last element has left, in ns",
            default.model_keep_alive.nseconds(),
        )
        .maximum(gst::ClockTime::from_seconds(7 * 24 * 3600).nseconds())
        .mutable_playing()
        .build(),
        glib::ParamSpecUInt::builder("history-size")
            .nick("History size")
            .blurb("Frames whose detections the signal recent-detections can give (0: none)")
            .maximum(1_000_000)
            .default_value(default.history_size)
            .mutable_playing()
            .build(),
        glib::ParamSpecString::builder("metrics-address")
            .nick("Metrics address")
            .blurb("HOST:PORT for a dashboard and Prometheus metrics, such as 127.0.0.1:9464 (unset: none)")
            .mutable_ready()
            .build(),
    ]
}

fn read<'a, T: glib::value::FromValue<'a>>(value: &'a glib::Value) -> T
where
    <T::Checker as glib::value::ValueTypeChecker>::Error: std::fmt::Debug,
{
    value.get().expect("type checked by GObject")
}

impl MemorySettings {
    /// Takes over a property of this group; false for any other.
    pub fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        let time = |value| gst::ClockTime::from_nseconds(read(value));
        match name {
            "memory-budget" => self.memory_budget = read(value),
            "gpu-memory-budget" => self.gpu_memory_budget = read(value),
            "pressure-interval" => self.pressure_interval = time(value),
            "pressure-cooldown" => self.pressure_cooldown = time(value),
            "pressure-reactions" => self.pressure_reactions = read(value),
            "pool-size" => self.pool_size = read(value),
            "pool-clear" => self.pool_clear = read(value),
            "model-keep-alive" => self.model_keep_alive = time(value),
            "history-size" => self.history_size = read(value),
            "metrics-address" => {
                self.metrics_address = read::<Option<String>>(value).filter(|text| !text.is_empty());
            }
            name => {
                if let Some(step) = PROCESS_NAMES.iter().position(|known| *known == name) {
                    self.process[step] = Some(read(value));
                } else if let Some(step) = GPU_NAMES.iter().position(|known| *known == name) {
                    self.gpu[step] = Some(read(value));
                } else {
                    return false;
                }
            }
        }
        true
    }

    pub fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "memory-budget" => self.memory_budget.to_value(),
            "gpu-memory-budget" => self.gpu_memory_budget.to_value(),
            "pressure-interval" => self.pressure_interval.nseconds().to_value(),
            "pressure-cooldown" => self.pressure_cooldown.nseconds().to_value(),
            "pressure-reactions" => self.pressure_reactions.to_value(),
            "pool-size" => self.pool_size.to_value(),
            "pool-clear" => self.pool_clear.to_value(),
            "model-keep-alive" => self.model_keep_alive.nseconds().to_value(),
            "history-size" => self.history_size.to_value(),
            "metrics-address" => self.metrics_address.to_value(),
            name => {
                let process = PROCESS_NAMES.iter().position(|known| *known == name);
                let gpu = GPU_NAMES.iter().position(|known| *known == name);
                match (process, gpu) {
                    (Some(step), _) => self.process_steps()[step].to_value(),
                    (_, Some(step)) => self.gpu_steps()[step].to_value(),
                    _ => return None,
                }
            }
        })
    }

    fn process_steps(&self) -> Steps {
        std::array::from_fn(|step| self.process[step].unwrap_or(PROCESS_STEPS[step]))
    }

    fn gpu_steps(&self) -> [u64; 2] {
        std::array::from_fn(|step| self.gpu[step].unwrap_or(GPU_STEPS[step]))
    }

    pub fn pool_rules(&self) -> Rules {
        Rules { size: (self.pool_size != 0).then_some(self.pool_size), clear: self.pool_clear }
    }

    /// As the monitor wants them.
    pub fn thresholds(&self) -> Thresholds {
        Thresholds {
            process: in_order(self.process, PROCESS_STEPS),
            process_degrades: self.process.map(|set| set.is_some()),
            budget: (self.memory_budget != 0).then_some(self.memory_budget),
            gpu: in_order(self.gpu, GPU_STEPS),
            gpu_degrades: self.gpu.map(|set| set.is_some()),
            gpu_budget: (self.gpu_memory_budget != 0).then_some(self.gpu_memory_budget),
            cooldown: self.pressure_cooldown.into(),
            react: self.pressure_reactions,
        }
    }
}

/// Defaults give way to what the user has set: none lies above a higher step that is set, or below a lower one.
fn in_order<const N: usize>(set: [Option<u64>; N], defaults: [u64; N]) -> [u64; N] {
    std::array::from_fn(|step| {
        set[step].unwrap_or_else(|| {
            let below = set[..step].iter().flatten().fold(defaults[step], |least, &known| least.max(known));
            set[step + 1..].iter().flatten().fold(below, |most, &known| most.min(known))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_give_way_to_thresholds_that_are_set() {
        let mut settings = MemorySettings::default();
        let process = |settings: &MemorySettings| {
            let thresholds = settings.thresholds();
            (thresholds.process, thresholds.process_degrades)
        };
        assert_eq!(process(&settings), (PROCESS_STEPS, [false; 3]));
        assert!(settings.set("memory-critical", &5_000_000_000u64.to_value()));
        assert_eq!(process(&settings), ([2_000_000_000, 5_000_000_000, 5_000_000_000], [false, true, false]));
        assert!(settings.set("memory-critical", &1_000_000_000u64.to_value()));
        assert_eq!(process(&settings), ([1_000_000_000, 1_000_000_000, 4_000_000_000], [false, true, false]));
        assert!(settings.set("memory-warning", &u64::MAX.to_value()));
        // The user's own contradiction stays as it is.
        assert_eq!(process(&settings).0, [u64::MAX, 1_000_000_000, u64::MAX]);
        assert_eq!(settings.get("memory-emergency").unwrap().get::<u64>().unwrap(), PROCESS_STEPS[2]);
    }

    #[test]
    fn a_gpu_budget_is_not_the_same_as_a_gpu_threshold() {
        let mut settings = MemorySettings::default();
        let gpu = |settings: &MemorySettings| {
            let thresholds = settings.thresholds();
            (thresholds.gpu, thresholds.gpu_degrades, thresholds.gpu_budget)
        };
        assert_eq!(gpu(&settings), (GPU_STEPS, [false; 2], None));
        assert!(settings.set("gpu-memory-budget", &8_000_000_000u64.to_value()));
        assert!(settings.set("gpu-memory-critical", &500_000_000u64.to_value()));
        assert_eq!(gpu(&settings), ([500_000_000; 2], [false, true], Some(8_000_000_000)));
    }
}

//! The figures in the OpenMetrics text format, which Prometheus reads.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::figures::{EngineFigures, Figures, Stream, StreamFigures};
use super::{COMMIT, VERSION};
use crate::memory::budget::Consumer;
use crate::memory::pressure::Level;
use crate::memory::sample::Gpu;

/// What [`render`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// # Errors
/// None that a string as the writer could give.
pub fn render(figures: Figures) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("yolodetect");
    registry.register_collector(Box::new(figures));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut families = Families(encoder);
        families.build()?;
        families.memory(self)?;
        families.streams(&self.streams)?;
        families.engines(&self.engines)
    }
}

/// A name, its help, and where the value comes from.
type Metric<T, V = u64> = (&'static str, &'static str, fn(&T) -> V);

/// No label.
const NONE: [(&str, &str); 0] = [];

/// Writes one metric after the other. Each is described even where there is no value now, so that what exists can be
/// seen on any machine.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        (name, unit): (&str, Option<Unit>),
        help: &str,
        values: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counter<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn build(&mut self) -> fmt::Result {
        let info = Info::new([("version", VERSION), ("commit", COMMIT)]);
        info.encode(self.0.encode_descriptor("build", "What is running.", None, MetricType::Info)?)
    }

    fn memory(&mut self, figures: &Figures) -> fmt::Result {
        let memory = &figures.memory;
        let sample = &memory.sample;
        let (cgroup, system, heap) = (sample.cgroup, sample.system, sample.heap);
        let bytes: [(&str, &str, Option<u64>); 9] = [
            ("process_resident", "Resident set of the process.", Some(sample.resident)),
            (
                "process_anonymous",
                "Of the resident set, what is no page of a file.",
                (sample.anonymous != 0).then_some(sample.anonymous),
            ),
            (
                "cgroup_used",
                "Of the container, without the file cache that would be dropped first.",
                cgroup.map(|cgroup| cgroup.used),
            ),
            ("cgroup_limit", "Limit of the container.", cgroup.map(|cgroup| cgroup.limit)),
            ("system_memory", "Memory of the machine.", system.map(|system| system.total)),
            (
                "system_available",
                "Of the machine, what can still be had.",
                system.map(|system| system.available),
            ),
            ("heap_used", "Allocated on the C heap.", heap.map(|heap| heap.used)),
            (
                "heap_free",
                "Freed on the C heap and not given back to the system.",
                heap.map(|heap| heap.free),
            ),
            ("budget_limit", "Most that the process may hold (memory-budget).", memory.budget),
        ];
        for (name, help, value) in bytes {
            self.gauge((name, Some(Unit::Bytes)), help, value.map(|value| (NONE, value)))?;
        }
        for (name, help, stall) in [
            (
                "cgroup_stall",
                "Share of time in which a task of the container waited for memory.",
                cgroup.and_then(|cgroup| cgroup.stall),
            ),
            (
                "system_stall",
                "Share of time in which a task of the machine waited for memory.",
                system.and_then(|system| system.stall),
            ),
        ] {
            let share = stall.map(|percent| (NONE, f64::from(percent) / 100.0));
            self.gauge((name, Some(Unit::Other("ratio".into()))), help, share)?;
        }
        let gpus: [Metric<Gpu, Option<u64>>; 3] = [
            ("gpu_memory", "Memory of the GPU.", |gpu| Some(gpu.total)),
            ("gpu_used", "Of the GPU's memory, held by all processes.", |gpu| Some(gpu.used)),
            ("gpu_own", "Of the GPU's memory, held by this process.", |gpu| gpu.own),
        ];
        for (name, help, value) in gpus {
            let values = sample.gpus.iter().filter_map(|gpu| Some(([("gpu", gpu.index)], value(gpu)?)));
            self.gauge((name, Some(Unit::Bytes)), help, values)?;
        }
        let reserved = Consumer::ALL.iter().zip(memory.reserved);
        self.gauge(
            ("budget_reserved", Some(Unit::Bytes)),
            "Reserved of the budget, by what it is for.",
            reserved.map(|(consumer, bytes)| ([("consumer", consumer.name())], bytes)),
        )?;
        let levels = Level::ALL.map(|level| format!("{} {}", level as u8, level.name())).join(", ");
        let help = format!("Memory pressure: {levels}.");
        self.gauge(("pressure_level", None), &help, [(NONE, u32::from(memory.level as u8))])
    }

    fn streams(&mut self, streams: &[Stream]) -> fmt::Result {
        let labels = |stream: &Stream| {
            [("stream", stream.name.to_string()), ("model", stream.figures.engine.model.clone())]
        };
        let counters: [Metric<StreamFigures>; 9] = [
            ("frames_in", "Frames that came in.", |stream| stream.frames_in),
            ("frames_out", "Frames that were handed on.", |stream| stream.frames_out),
            ("frames_inferred", "Frames handed on with their detections.", |stream| stream.inferred),
            ("frames_failed", "Frames handed on whose inference failed.", |stream| stream.failed),
            ("detections", "Objects found.", |stream| stream.detections),
            ("pool_requests", "Frames that came in, as the reuse of their memory is counted.", |stream| {
                stream.pool.requests
            }),
            ("pool_hits", "Of those, frames in memory that had held one before.", |stream| stream.pool.hits),
            ("pool_allocated", "Buffers that the element's own pool has made.", |stream| {
                stream.pool.allocated
            }),
            ("pool_misses", "Of those, buffers beyond the pool's bound.", |stream| stream.pool.misses),
        ];
        for (name, help, value) in counters {
            self.counter(name, help, streams.iter().map(|stream| (labels(stream), value(&stream.figures))))?;
        }
        let skipped = streams.iter().flat_map(|stream| {
            let causes = stream.figures.skipped.by_cause();
            causes.map(|(cause, frames)| {
                let [name, model] = labels(stream);
                ([name, model, ("cause", cause.to_string())], frames)
            })
        });
        self.counter("frames_skipped", "Frames handed on without having been inferred.", skipped)?;
        let gauges: [Metric<StreamFigures>; 4] = [
            ("queue_frames", "Frames in the element.", |stream| stream.queue_depth),
            ("pool_available_buffers", "Buffers at rest in the element's own pool.", |stream| {
                stream.pool.available
            }),
            ("pool_in_use_buffers", "Buffers of the element's own pool that are out.", |stream| {
                stream.pool.in_use
            }),
            ("pool_peak_buffers", "Most buffers that were ever out.", |stream| stream.pool.peak),
        ];
        for (name, help, value) in gauges {
            let values = streams.iter().map(|stream| (labels(stream), value(&stream.figures)));
            self.gauge((name, None), help, values)?;
        }
        self.gauge(
            ("pool", Some(Unit::Bytes)),
            "That the buffers of the element's own pool hold.",
            streams.iter().map(|stream| (labels(stream), stream.figures.pool.bytes)),
        )
    }

    fn engines(&mut self, engines: &[EngineFigures]) -> fmt::Result {
        let labels = |engine: &EngineFigures| {
            [
                ("engine", engine.number.to_string()),
                ("model", engine.model.clone()),
                ("device", engine.device.clone()),
            ]
        };
        let counters: [Metric<EngineFigures>; 2] = [
            ("engine_batches", "Batches that were run.", |engine| engine.batches),
            ("engine_frames", "Frames in those batches.", |engine| engine.frames),
        ];
        for (name, help, value) in counters {
            self.counter(name, help, engines.iter().map(|engine| (labels(engine), value(engine))))?;
        }
        let gauges: [Metric<EngineFigures>; 5] = [
            ("engine_streams", "Streams that share the engine.", |engine| engine.streams),
            ("engine_slots", "Frames that its batches have room for together.", |engine| engine.slots),
            ("engine_waiting_streams", "Streams that wait for a slot.", |engine| engine.waiting),
            ("engine_callers", "Runs that may be in progress at the same time.", |engine| engine.callers),
            ("engine_batch_limit", "Most frames in a batch as things are.", |engine| engine.batch_limit),
        ];
        for (name, help, value) in gauges {
            self.gauge((name, None), help, engines.iter().map(|engine| (labels(engine), value(engine))))?;
        }
        self.gauge(
            ("engine_loaded", Some(Unit::Bytes)),
            "What the process grew by while the model was loaded.",
            engines.iter().map(|engine| (labels(engine), engine.bytes)),
        )?;
        self.gauge(
            ("engine_last_run", Some(Unit::Seconds)),
            "What the latest batch took to run.",
            engines.iter().map(|engine| (labels(engine), engine.last_run)),
        )
    }
}

//! A strict reader of the OpenMetrics text format, as far as counters, gauges and infos go: what it does not know or what
//! is not exactly as the standard says is an error.
#![allow(dead_code)]

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub help: String,
    pub unit: Option<String>,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// With its suffix.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

#[derive(Debug)]
pub struct Metrics(pub BTreeMap<String, Family>);

impl Metrics {
    /// The one sample of this name with these labels.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|is| is == value))
        };
        let mut found = self.0.values().flat_map(|family| &family.samples).filter(has);
        let value = found.next().map(|sample| sample.value);
        assert!(found.next().is_none(), "several {name} with {labels:?}");
        value
    }

    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no {name} with {labels:?}"))
    }

    /// What samples may be called.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, family)| format!("{name}{}", suffix(&family.kind))).collect()
    }
}

fn suffix(kind: &str) -> &'static str {
    match kind {
        "counter" => "_total",
        "info" => "_info",
        "gauge" => "",
        kind => panic!("unknown type {kind}"),
    }
}

fn is_name(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(first) && text.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// # Errors
/// The line that is wrong.
pub fn parse(text: &str) -> Result<Metrics, String> {
    let lines = text.strip_suffix("# EOF\n").ok_or("no `# EOF` at the end")?;
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    for line in lines.lines() {
        let wrong = |what: &str| format!("{what}: {line}");
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (Some(key), Some(name), Some(value)) = (words.next(), words.next(), words.next()) else {
                return Err(wrong("an incomplete description"));
            };
            if name != current {
                if !is_name(name) || families.contains_key(name) {
                    return Err(wrong("no name, or described before"));
                }
                current = name.to_string();
                families.insert(current.clone(), Family::default());
            }
            let family = families.get_mut(name).ok_or_else(|| wrong("no family"))?;
            if !family.samples.is_empty() {
                return Err(wrong("a description after samples"));
            }
            let (place, value) = match key {
                "HELP" => (&mut family.help, value.to_string()),
                "TYPE" => (&mut family.kind, value.to_string()),
                "UNIT" if name.ends_with(&format!("_{value}")) => {
                    (family.unit.insert(String::new()), value.to_string())
                }
                _ => return Err(wrong("unknown description or a unit that is not in the name")),
            };
            if !place.is_empty() {
                return Err(wrong("described twice"));
            }
            *place = value;
            continue;
        }
        let sample = sample(line).ok_or_else(|| wrong("no sample"))?;
        let family = families.get_mut(&current).ok_or_else(|| wrong("a sample of no family"))?;
        if family.kind.is_empty() || sample.name != format!("{current}{}", suffix(&family.kind)) {
            return Err(wrong("another family's sample, or one without the suffix of its type"));
        }
        if family.samples.iter().any(|other| other.labels == sample.labels) {
            return Err(wrong("a second sample with these labels"));
        }
        if family.kind != "gauge" && (sample.value < 0.0 || !sample.value.is_finite()) {
            return Err(wrong("counters only grow"));
        }
        family.samples.push(sample);
    }
    match families.iter().find(|(_, family)| family.kind.is_empty() || family.help.is_empty()) {
        Some((name, _)) => Err(format!("{name} has no type or no help")),
        None => Ok(Metrics(families)),
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(set) = rest.strip_prefix('{') {
        rest = set;
        while !rest.starts_with('}') {
            let (key, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquote(quoted)?;
            if !is_name(key) || labels.insert(key.to_string(), value).is_some() {
                return None;
            }
            rest = after.strip_prefix(',').filter(|more| !more.starts_with('}')).unwrap_or(after);
            if !rest.starts_with('}') && std::ptr::eq(rest, after) {
                return None;
            }
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ')?;
    // Neither a time stamp nor blanks.
    let value = value.parse().ok().filter(|_| !value.contains(' '))?;
    is_name(name).then(|| Sample { name: name.into(), labels, value })
}

/// A label's value up to its closing quote, and what follows that.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match chars.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            (_, c) => value.push(c),
        }
    }
}

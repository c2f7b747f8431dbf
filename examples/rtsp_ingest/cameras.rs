//! The list of cameras: `NAME=URI`, one an argument or a line of a file.

use std::path::Path;

use crate::address::{Address, Credentials};

#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub address: Address,
}

/// The cameras so far.
#[derive(Default)]
pub struct List {
    pub entries: Vec<Entry>,
    /// For addresses without any.
    pub credentials: Option<Credentials>,
}

impl List {
    /// `NAME=URI`, or a URI alone, which is named `camN`.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let (name, uri) = match text.split_once('=') {
            // A `=` of the address itself.
            Some((name, _)) if name.contains("://") => (self.free_name(), text),
            Some((name, uri)) => (name.trim().to_string(), uri.trim()),
            None => (self.free_name(), text),
        };
        check_name(&name)?;
        if self.entries.iter().any(|entry| entry.name == name) {
            return Err(format!("there are two cameras named {name}"));
        }
        let address = Address::parse(uri)?.or_credentials(self.credentials.as_ref());
        self.entries.push(Entry { name, address });
        Ok(())
    }

    /// A camera a line; what follows a `#` at a line's beginning is a comment.
    pub fn add_file(&mut self, path: &Path) -> Result<(), String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("the cameras file {} cannot be read: {error}", path.display()))?;
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if !line.is_empty() && !line.starts_with('#') {
                self.add(line).map_err(|reason| format!("{}, line {number}: {reason}", path.display()))?;
            }
        }
        Ok(())
    }

    fn free_name(&self) -> String {
        let mut names = (1..).map(|number| format!("cam{number}"));
        let free = names.find(|name| self.entries.iter().all(|entry| entry.name != *name));
        free.unwrap_or_default()
    }
}

/// Names become names of files.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with(['.', '-']) || !name.chars().all(fits) {
        return Err(format!(
            "{name:?} is no name for a camera: use letters, digits, '-', '_' and '.', as in gate-2=rtsp://…"
        ));
    }
    Ok(())
}

//! Where the cache is: what the property says, or else the environment.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Says it for every element that does not.
pub const VARIABLE: &str = "YOLODETECT_MODEL_CACHE";
/// The value for none.
pub const OFF: &str = "off";

/// `property` is `None` where it was not set.
pub fn folder(property: Option<&str>) -> Option<PathBuf> {
    choose(property, |name| env::var_os(name))
}

fn choose(property: Option<&str>, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let said = property.map(OsString::from).or_else(|| variable(VARIABLE));
    if let Some(said) = said {
        return (!said.is_empty() && said != OFF).then(|| said.into());
    }
    // The XDG specification has relative paths ignored.
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join(Path::new("yolodetect")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_property_counts_then_the_variable_then_the_user_s_cache_folder() {
        let of = |property, variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            };
            choose(property, variable).map(|path| path.display().to_string())
        };
        let home = ("HOME", "/home/a");
        let xdg = ("XDG_CACHE_HOME", "/caches");
        for (property, variables, folder) in [
            (None, &[home][..], Some("/home/a/.cache/yolodetect")),
            (None, &[home, xdg], Some("/caches/yolodetect")),
            (None, &[home, ("XDG_CACHE_HOME", "here")], Some("/home/a/.cache/yolodetect")),
            (None, &[("HOME", "")], None),
            (None, &[], None),
            (None, &[home, (VARIABLE, "/other")], Some("/other")),
            (None, &[home, (VARIABLE, "off")], None),
            (None, &[home, (VARIABLE, "")], None),
            (Some("here"), &[home, (VARIABLE, "off")], Some("here")),
            (Some("off"), &[home, xdg], None),
            (Some(""), &[home, (VARIABLE, "/other")], None),
        ] {
            assert_eq!(of(property, variables).as_deref(), folder, "{property:?} {variables:?}");
        }
    }
}

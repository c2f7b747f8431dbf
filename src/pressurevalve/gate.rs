//! Which units of a stream pass while the valve is shut, and from which on they do again. Pure.

/// What is let through while the valve is shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shut {
    Nothing,
    KeyUnits,
    /// The first key unit of so many.
    OneIn(u32),
}

/// A buffer, as far as this matters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unit {
    /// It needs the units before it.
    pub delta: bool,
    /// It holds what others need, and nothing that is shown.
    pub header: bool,
    /// Another part of the unit before it, whose fate it shares.
    pub continues: bool,
    /// When it is shown.
    pub pts: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    /// Drop, since the valve is open again but units before it are missing; a key unit would help.
    AwaitKey,
}

/// From unit to unit.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    last: Verdict,
    /// A unit was dropped and no key unit has passed since: delta units cannot be decoded.
    broken: bool,
    /// When the key unit is shown at which the stream took up again. Delta units behind it that are shown before it (the
    /// leading ones of an open group of pictures) need units that were dropped; nothing needs them.
    resumed: Option<u64>,
    /// Key units since the valve was shut.
    keys: u32,
}

impl Default for Gate {
    fn default() -> Self {
        Self { last: Verdict::Pass, broken: false, resumed: None, keys: 0 }
    }
}

impl Gate {
    /// `shut` is what passes while the valve is shut, `None` while it is open.
    pub fn judge(&mut self, unit: Unit, shut: Option<Shut>) -> Verdict {
        if unit.header {
            return Verdict::Pass;
        }
        if !unit.continues {
            self.last = self.fate(unit, shut);
        }
        self.last
    }

    fn fate(&mut self, unit: Unit, shut: Option<Shut>) -> Verdict {
        let wanted = match shut {
            None => true,
            Some(Shut::Nothing) => false,
            Some(Shut::KeyUnits) => !unit.delta,
            Some(Shut::OneIn(_)) if unit.delta => false,
            Some(Shut::OneIn(count)) => self.keys.is_multiple_of(count.max(1)),
        };
        match shut {
            None => self.keys = 0,
            Some(_) if !unit.delta => self.keys = self.keys.wrapping_add(1),
            Some(_) => (),
        }
        if !wanted {
            self.broken = true;
            return Verdict::Drop;
        }
        if !unit.delta {
            self.resumed = unit.pts.filter(|_| self.broken);
            self.broken = false;
            return Verdict::Pass;
        }
        match (self.broken, unit.pts < self.resumed) {
            (true, _) => Verdict::AwaitKey,
            (false, true) if unit.pts.is_some() => Verdict::Drop,
            (false, _) => Verdict::Pass,
        }
    }

    /// Whether units are held back.
    pub fn is_active(&self, shut: bool) -> bool {
        shut || self.last == Verdict::AwaitKey
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: Unit = Unit { delta: false, header: false, continues: false, pts: None };
    const DELTA: Unit = Unit { delta: true, ..KEY };
    const HEADER: Unit = Unit { header: true, ..KEY };

    /// `k`ey, `d`elta, `h`eader, lower case while the valve is open, and what passes: itself, `.`, or `?` where a key
    /// unit is awaited.
    fn passed(units: &str, shut: Shut) -> String {
        let mut gate = Gate::default();
        let pass = |letter: char| {
            let kind = letter.to_ascii_lowercase();
            let unit = match kind {
                'k' => KEY,
                'd' => DELTA,
                'h' => HEADER,
                'c' => Unit { continues: true, ..KEY },
                _ => unreachable!("{letter}"),
            };
            match gate.judge(unit, letter.is_uppercase().then_some(shut)) {
                Verdict::Pass => letter,
                Verdict::Drop => '.',
                Verdict::AwaitKey => '?',
            }
        };
        units.chars().map(pass).collect()
    }

    #[test]
    fn it_opens_at_a_key_unit() {
        assert_eq!(passed("kddDDddkddk", Shut::Nothing), "kdd..??kddk");
        assert_eq!(passed("kdKDDkdd", Shut::Nothing), "kd...kdd");
        // Every unit of raw video or audio is one.
        assert_eq!(passed("kkKKKkkk", Shut::Nothing), "kk...kkk");
        assert_eq!(passed("DDddk", Shut::Nothing), "..??k");
        assert_eq!(passed("kKHDhddk", Shut::Nothing), "k.H.h??k");
    }

    #[test]
    fn key_units_alone() {
        assert_eq!(passed("kdDDKDDKDddkd", Shut::KeyUnits), "kd..K..K.??kd");
        assert_eq!(passed("kKKk", Shut::KeyUnits), "kKKk");
        // Nothing was dropped before these.
        assert_eq!(passed("KddkdKdd", Shut::KeyUnits), "KddkdKdd");
    }

    #[test]
    fn one_in_n() {
        assert_eq!(passed("kkKKKKKKKkkKKk", Shut::OneIn(3)), "kkK..K..KkkK.k");
        assert_eq!(passed("KDDKDDKDDkd", Shut::OneIn(2)), "K.....K..kd");
        assert_eq!(passed("KKK", Shut::OneIn(1)), "KKK");
        assert_eq!(passed("KKK", Shut::OneIn(0)), "KKK");
    }

    #[test]
    fn parts_of_a_unit_stay_together() {
        assert_eq!(passed("kcKCcckc", Shut::Nothing), "kc....kc");
        assert_eq!(passed("kcCCKC", Shut::Nothing), "kcCC..");
        assert_eq!(passed("KCCKCC", Shut::OneIn(2)), "KCC...");
    }

    #[test]
    fn leading_units_of_an_open_group_need_what_was_dropped() {
        let mut gate = Gate::default();
        let mut passes = |delta, pts, shut: bool| {
            let unit = Unit { delta, pts: Some(pts), ..KEY };
            gate.judge(unit, shut.then_some(Shut::Nothing)) == Verdict::Pass
        };
        assert_eq!(
            [(false, 0), (true, 2), (true, 1)].map(|(delta, pts)| passes(delta, pts, false)),
            [true; 3]
        );
        // Whole, these pass.
        assert_eq!(
            [(false, 4), (true, 3), (true, 5)].map(|(delta, pts)| passes(delta, pts, false)),
            [true; 3]
        );
        assert!(!passes(true, 6, true));
        let after = [(false, 9), (true, 7), (true, 8), (true, 12), (true, 10), (false, 14), (true, 13)];
        let passed = after.map(|(delta, pts)| passes(delta, pts, false));
        assert_eq!(passed, [true, false, false, true, true, true, true]);
    }

    proptest! {
        #[test]
        fn no_delta_unit_passes_without_those_before_it(
            units in "[kdKD]{0,60}",
            shut in prop_oneof![
                Just(Shut::Nothing), Just(Shut::KeyUnits), (0u32..5).prop_map(Shut::OneIn)
            ],
        ) {
            let out = passed(&units, shut);
            let mut whole = true;
            for (sent, got) in units.chars().zip(out.chars()) {
                let (key, through) = (sent.eq_ignore_ascii_case(&'k'), sent == got);
                prop_assert!(!through || key || whole, "{units} {out}");
                prop_assert!(through || sent.is_uppercase() || !key, "open: {units} {out}");
                whole = through && (key || whole);
            }
        }
    }
}

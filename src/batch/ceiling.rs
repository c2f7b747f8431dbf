//! How large a batch may be after one ran out of memory. Pure.

/// Full batches in a row after which a larger one is tried again; doubled by each further failure.
const FIRST_PATIENCE: u32 = 64;
const MAX_PATIENCE: u32 = 4096;

/// Halves at once, doubles slowly.
#[derive(Debug, Default)]
pub struct Ceiling {
    /// `None` while memory never ran out, or has long been enough again.
    limit: Option<usize>,
    /// Full batches until the next try.
    patience: u32,
    /// Of which so many have run.
    full: u32,
}

impl Ceiling {
    /// The size to use where `wish` frames are wanted; at least 1.
    pub fn size(&self, wish: usize) -> usize {
        self.limit.map_or(wish, |limit| limit.min(wish))
    }

    /// Memory was enough for no more than `frames` at once.
    pub fn lower(&mut self, frames: usize) {
        self.limit = Some(frames.max(1));
        self.patience = (self.patience * 2).clamp(FIRST_PATIENCE, MAX_PATIENCE);
        self.full = 0;
    }

    /// A batch of `frames` ran well, where `wish` are wanted.
    pub fn ran(&mut self, frames: usize, wish: usize) {
        let Some(limit) = self.limit else { return };
        // A smaller batch proves nothing.
        if frames < limit {
            return;
        }
        self.full += 1;
        if self.full >= self.patience {
            self.full = 0;
            self.limit = Some(limit * 2);
        }
        if limit >= wish && self.full == 0 {
            // The largest that anybody wants was fine for long.
            *self = Self::default();
        }
    }
}

/// The size of the parts into which a batch of `frames` that ran out of memory is split: the largest power of two
/// below it, so that the parts of all batches together have few shapes; 1 at the least.
pub fn part(frames: usize) -> usize {
    match frames {
        0..=2 => 1,
        _ => 1 << (frames - 1).ilog2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        assert_eq!([1, 2, 3, 4, 5, 6, 8, 9, 16].map(part), [1, 1, 2, 2, 4, 4, 4, 8, 8]);
    }

    #[test]
    fn halves_at_once_and_doubles_slowly() {
        let mut ceiling = Ceiling::default();
        assert_eq!(ceiling.size(8), 8);
        ceiling.lower(part(8));
        ceiling.lower(part(4));
        assert_eq!(ceiling.size(8), 2);
        let until_raised = |ceiling: &mut Ceiling, frames: usize| {
            let before = ceiling.size(8);
            (1..).find(|_| {
                ceiling.ran(frames, 8);
                ceiling.size(8) != before
            })
        };
        (0..10_000).for_each(|_| ceiling.ran(1, 8));
        assert_eq!(ceiling.size(8), 2, "smaller batches prove nothing");
        assert_eq!(until_raised(&mut ceiling, 2), Some(128));
        assert_eq!(ceiling.size(8), 4);
        assert_eq!(until_raised(&mut ceiling, 4), Some(128));
        assert_eq!(ceiling.size(8), 8);
        // It was one too many: the next try is later.
        ceiling.lower(4);
        assert_eq!(until_raised(&mut ceiling, 4), Some(256));
        for _ in 0..256 {
            ceiling.ran(8, 8);
        }
        assert!(ceiling.limit.is_none() && ceiling.patience == 0, "all is well again: {ceiling:?}");
    }

    #[test]
    fn patience_has_an_end() {
        let mut ceiling = Ceiling::default();
        (0..100).for_each(|_| ceiling.lower(1));
        assert_eq!(ceiling.patience, MAX_PATIENCE);
        assert_eq!(ceiling.size(4), 1);
        (0..MAX_PATIENCE).for_each(|_| ceiling.ran(1, 4));
        assert_eq!(ceiling.size(4), 2);
    }
}

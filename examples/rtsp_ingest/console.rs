//! Standard error: lines as they come, and the status, which changes in place on a terminal.

use std::io::{IsTerminal, Write};

/// A longer status may not fit the terminal, and what has scrolled away cannot be changed.
const MOST_REDRAWN: usize = 20;

pub struct Console {
    terminal: bool,
    /// Lines of the status just above the cursor.
    drawn: usize,
}

impl Console {
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), drawn: 0 }
    }

    /// A line that stays.
    pub fn say(&mut self, text: &str) {
        self.typed();
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        put(&format!("{clear}{text}\n"));
    }

    /// Somebody pressed enter: the cursor is elsewhere now.
    pub fn typed(&mut self) {
        self.drawn = 0;
    }

    pub fn show(&mut self, lines: &[String]) {
        if !self.terminal {
            put(&format!("{}\n", lines.join("\n")));
            return;
        }
        // Lines are cut at the terminal's edge (?7l) meanwhile: each takes one row.
        if self.drawn == lines.len() {
            // What is being typed below stays, and so does the cursor there (7, 8).
            put(&format!(
                "\x1b7\x1b[{}A\x1b[?7l\r{}\x1b[K\x1b[?7h\x1b8",
                self.drawn,
                lines.join("\x1b[K\r\n")
            ));
        } else {
            put(&format!("\x1b[?7l\r{}\x1b[K\x1b[?7h\r\n", lines.join("\x1b[K\r\n")));
            self.drawn = if lines.len() <= MOST_REDRAWN { lines.len() } else { 0 };
        }
    }
}

fn put(text: &str) {
    // Nothing is lost if nobody can read it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

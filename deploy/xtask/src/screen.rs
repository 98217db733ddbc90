//! Progress for people: one redrawn screen on a terminal, a line per event elsewhere.

use std::io::{IsTerminal, Write};

pub struct Screen {
    terminal: bool,
    drawn_lines: usize,
}

impl Screen {
    pub fn new() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            drawn_lines: 0,
        }
    }

    /// A line that stays.
    pub fn line(&mut self, text: &str) {
        // On a terminal what was drawn is overwritten, and drawn again below.
        let mut out = std::io::stdout().lock();
        write!(out, "{}", self.rewind()).ok();
        writeln!(out, "{text}").ok();
        out.flush().ok();
    }

    /// The state of things; replaces the one before. Only on a terminal.
    pub fn draw(&mut self, lines: &[String]) {
        if !self.terminal {
            return;
        }
        let rewind = self.rewind();
        let mut out = std::io::stdout().lock();
        write!(out, "{rewind}").ok();
        for line in lines {
            // Cut rather than wrap: a wrapped line would break the count.
            let cut: String = line.chars().take(width()).collect();
            writeln!(out, "{cut}").ok();
        }
        out.flush().ok();
        self.drawn_lines = lines.len();
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    fn rewind(&mut self) -> String {
        let lines = std::mem::take(&mut self.drawn_lines);
        // Up, and everything below erased (ECMA-48 CUU, ED).
        if lines == 0 {
            String::new()
        } else {
            format!("\x1b[{lines}A\x1b[J")
        }
    }
}

fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.map_or(80, |size| usize::from(size.ws_col)).max(40)
}

//! The terminal's other screen: taken over once, and given back at the end, at a panic and at a second signal.

use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use std::io::{self, stdout};
use std::sync::{Arc, Mutex, TryLockError};

/// Whether the other screen is on; shared by all who may have to give it back.
#[derive(Debug, Clone, Default)]
pub struct Screen(Arc<Mutex<bool>>);

impl Screen {
    /// Changes to the other screen; a panic from here on gives it back before it is printed.
    ///
    /// # Errors
    /// A terminal that cannot be written.
    pub fn enter(&self) -> io::Result<()> {
        let (screen, print) = (self.clone(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            screen.restore();
            print(info);
        }));
        let mut on = self.0.lock().expect("nobody panics with the screen");
        execute!(stdout(), EnterAlternateScreen, Hide)?;
        *on = true;
        Ok(())
    }

    /// Gives the screen back if it is on. Never waits: the one who draws may be the one that panicked, or may wait
    /// for a terminal that takes nothing.
    pub fn restore(&self) {
        let was_on = match self.0.try_lock() {
            Ok(mut on) => std::mem::take(&mut *on),
            Err(TryLockError::Poisoned(on)) => std::mem::take(&mut *on.into_inner()),
            Err(TryLockError::WouldBlock) => true,
        };
        if was_on {
            // A terminal that is gone needs no order.
            let _ = execute!(stdout(), Show, LeaveAlternateScreen);
        }
    }

    /// What `work` says, if the screen is on; it stays on meanwhile. Else false.
    pub(super) fn while_on(&self, work: impl FnOnce() -> bool) -> bool {
        match self.0.lock() {
            Ok(on) => *on && work(),
            Err(_) => false,
        }
    }
}

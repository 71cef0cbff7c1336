//! The terminal's other screen: taken over once, and given back at the end, at a panic and at a second signal.

use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use std::io::{self, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Whether the other screen is on; shared by all who may have to give it back.
#[derive(Debug, Clone, Default)]
pub struct Screen(Arc<State>);

#[derive(Debug, Default)]
struct State {
    on: AtomicBool,
    /// Held while something is drawn.
    drawing: Mutex<()>,
}

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
        let _held = self.0.drawing.lock().expect("nobody panics with the screen");
        execute!(stdout(), EnterAlternateScreen, Hide)?;
        self.0.on.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Gives the screen back if it is on: once, whoever asks. A terminal that is told twice puts the cursor back to
    /// where it was before, and what is printed next covers the message of a panic. Never waits: the one who
    /// draws may be the one that panicked, or may wait for a terminal that takes nothing.
    pub fn restore(&self) {
        if self.0.on.swap(false, Ordering::SeqCst) {
            let _held = self.0.drawing.try_lock();
            // A terminal that is gone needs no order.
            let _ = execute!(stdout(), Show, LeaveAlternateScreen);
        }
    }

    /// What `work` says, if the screen is on; it stays on meanwhile, unless it cannot wait. Else false.
    pub(super) fn while_on(&self, work: impl FnOnce() -> bool) -> bool {
        match self.0.drawing.lock() {
            Ok(_held) => self.0.on.load(Ordering::SeqCst) && work(),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Command;

    /// Tells a test that it is the child, and where to panic.
    const CHILD: &str = "MOE_TEST_PANICS";
    const WORDS: &str = "this is why";

    /// A child in whose place the test `name` panics; everything it prints, in the order of printing.
    fn said_by_child(name: &str, place: &str) -> String {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = format!("dashboard::screen::tests::{name}");
        command.args([&name, "--exact", "--nocapture"]).env(CHILD, place);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        // With the command go our ends of the pipe.
        drop(command);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert!(!child.wait().unwrap().success(), "the child panics");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The same screen as in a run: given back when it is dropped, whether that is by a panic or not.
    struct Owner(Screen);

    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.restore();
        }
    }

    fn panic_at(place: &str) -> ! {
        let owner = Owner(Screen::default());
        owner.0.enter().unwrap();
        let panic = || -> bool { panic!("{WORDS}") };
        let screen = owner.0.clone();
        match place {
            // As the one who draws, which is a thread of its own, and as any other.
            "drawing" => std::thread::spawn(move || screen.while_on(panic)).join().unwrap(),
            _ => panic(),
        };
        unreachable!("it panics");
    }

    #[test]
    fn a_panic_gives_the_screen_back_once_and_before_its_message() {
        if let Ok(place) = std::env::var(CHILD) {
            panic_at(&place);
        }
        for place in ["drawing", "elsewhere"] {
            let name = "a_panic_gives_the_screen_back_once_and_before_its_message";
            let said = said_by_child(name, place);
            let [enter, leave] = ["\u{1b}[?1049h", "\u{1b}[?1049l"];
            let (_, on) = said.split_once(enter).expect("the screen is taken");
            let (_, after) = on.split_once(leave).expect("the screen is given back");
            assert!(!after.contains(leave) && !after.contains(enter), "{place}: {said:?}");
            assert!(after.contains(WORDS), "{place}: {said:?}");
            assert!(on.contains("\u{1b}[?25h"), "{place}: the cursor is there: {said:?}");
        }
    }
}

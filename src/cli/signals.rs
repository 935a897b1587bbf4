//! Ctrl-C, and the signals by which services and terminals end a program.
//!
//! A command that asks for the [flag](cancel) ends by itself when the first signal sets it: what it has is whole then. Every other
//! command ends at once, and every command at the second signal; what was being written is removed. The exit code is 128
//! and the signal's number, as shells have it.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::SIGINT;

/// The flag, once a command has asked for it.
static CANCEL: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// The signal that came last.
static SIGNAL: AtomicI32 = AtomicI32::new(SIGINT);

/// Becomes true at the first signal, of which the command takes care from now on.
pub(super) fn cancel() -> Arc<AtomicBool> {
    let flag = CANCEL.get_or_init(Arc::default);
    // Where nothing watches, the second signal ends the program as it always does.
    #[cfg(not(unix))]
    let _ = signal_hook::flag::register_conditional_default(SIGINT, Arc::clone(flag))
        .and_then(|_| signal_hook::flag::register(SIGINT, Arc::clone(flag)));
    Arc::clone(flag)
}

/// From now on the first signal ends the program at once; whether one has come before.
pub(super) fn no_longer() -> bool {
    CANCEL
        .get()
        .is_some_and(|flag| flag.swap(true, Ordering::Relaxed))
}

/// The exit code of a program that a signal ended.
pub(super) fn code() -> u8 {
    u8::try_from(128 + SIGNAL.load(Ordering::Relaxed)).unwrap_or(u8::MAX)
}

/// Watches for signals until the program ends.
#[cfg(unix)]
pub(super) fn watch() {
    use signal_hook::consts::{SIGHUP, SIGTERM, SIGXFSZ};
    use signal_hook::iterator::Signals;

    // A file that grows beyond `ulimit -f` is then an error of the write, like a full disk.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    // What was ignored from the start stays so: that is how nohup and shells keep a program running.
    let ignored = ignored();
    let signals = [SIGINT, SIGTERM, SIGHUP].into_iter();
    let signals = signals.filter(|signal| ignored >> (signal - 1) & 1 == 0);
    // Without it signals end the program as they always do.
    let Ok(mut signals) = Signals::new(signals) else {
        return;
    };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            SIGNAL.store(signal, Ordering::Relaxed);
            let told = CANCEL.get();
            if told.is_none_or(|flag| flag.swap(true, Ordering::Relaxed)) {
                context_patch::output::exit(code().into());
            }
        }
    });
}

#[cfg(not(unix))]
pub(super) fn watch() {}

/// The signals that are ignored, a bit each, where the system says so.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

//! What systemd hears of us (sd_notify(3)): ready, reloading, stopping, a status line, and the
//! watchdog's sign of life when the unit asks for one. Without systemd every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Tells systemd that the agent serves; a later reload ends with this as well.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd that a reload began; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Tells systemd that the agent drains.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Gives the sign of life that `WatchdogSec=` asks for, twice as often as needed, as long as
/// `is_alive` says so. Returns at once when none is asked for, else never.
pub async fn watchdog(is_alive: impl Fn() -> bool) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        if is_alive() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// A notice that cannot be sent changes nothing for the mail; it is logged for whoever wonders
/// why systemd thinks the unit is still starting.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

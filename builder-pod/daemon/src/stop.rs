//! How the daemon ends: first gently, then at once.

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long cleaning up may take once builds were told to end.
const CLEANING_MAX: Duration = Duration::from_secs(5);

/// The two stages of the end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// No new work: raised by the first signal.
    pub drain: CancellationToken,
    /// Running work ends now: raised when the grace period is over, by the second signal, or when all is done.
    pub end: CancellationToken,
}

impl Stop {
    /// Listens for SIGTERM and SIGINT from now on. The first one raises `drain` and, `grace` later, `end`; the second
    /// raises `end`; where cleaning up then takes long, or at a third one, the program ends at once.
    ///
    /// # Errors
    /// Signals cannot be listened for.
    pub fn on_signals(grace: Duration) -> std::io::Result<Self> {
        let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = Self::default();
        tokio::spawn(stop.clone().watch(signals, grace));
        Ok(stop)
    }

    async fn watch(self, mut signals: (Signal, Signal), grace: Duration) {
        next(&mut signals).await;
        tracing::info!(
            "got SIGTERM/SIGINT, no new builds; those that run may go on for {} s",
            grace.as_secs()
        );
        crate::notify::notify("STOPPING=1");
        self.drain.cancel();
        tokio::select! {
            () = tokio::time::sleep(grace) => tracing::warn!("the time for running builds is over, they are cancelled"),
            () = next(&mut signals) => tracing::warn!("got 2 SIGTERM/SIGINTs, running builds are cancelled"),
            () = self.end.cancelled() => {}
        }
        self.end.cancel();
        tokio::select! {
            () = tokio::time::sleep(CLEANING_MAX) => tracing::error!("cleaning up takes too long, forcibly terminating"),
            () = next(&mut signals) => tracing::error!("got 3 SIGTERM/SIGINTs, forcibly terminating"),
        }
        std::process::exit(1);
    }

    /// What the program ends with after a signal, as `buildkitd` does: its reason on standard error, and 1.
    pub fn exit_code(&self) -> ExitCode {
        use std::io::Write as _;
        if !self.drain.is_cancelled() {
            return ExitCode::SUCCESS;
        }
        writeln!(std::io::stderr(), "buildkitd: got SIGTERM/SIGINT, forcing shutdown").ok(); // nobody listens
        ExitCode::FAILURE
    }
}

async fn next((terminate, interrupt): &mut (Signal, Signal)) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

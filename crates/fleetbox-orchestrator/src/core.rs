//! The life of one machine as a pure function: [`step`] takes where it is and what happened, and says
//! where it is then and what is to be done. The async shell (`machine.rs`) does it.
//!
//! ```text
//!               Start          Prepared        Launched        Ready
//!   Stopped ------------> Preparing ----> Launching ----> Booting ----> Running <---> Paused
//!      ^                      |               |              |             |             |
//!      |  (PrepareFailed)     |               |              |   Stop, guest's own end   |
//!      +----------------------+               v              v             v             v
//!      |                                  Ending(then) <-----+-------------+-------------+
//!      |                                      | Exited
//!      +---- then: Stop ----------------------+---- then: Fail ---> Failed
//!                                             +---- then: Boot ---> Launching (guest's reboot, reset)
//!                                             +---- then: Delete -> Gone
//! ```
//!
//! Invariants, each a property test below:
//! - at most one VMM exists: [`Action::Launch`] is never asked for while one lives;
//! - a disk is deleted only for a destroy, or for a machine whose very first preparation did not finish;
//! - every way of ending a VMM waits for its end before anything else is done with its files;
//! - a request in a phase where it has no meaning changes nothing.

/// What follows the end of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The machine is stopped.
    Stop,
    /// The machine has failed; the shell keeps why.
    Fail,
    /// It is booted again from the disk as it is then.
    Boot,
    /// It is deleted.
    Delete,
}

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No VMM; disk kept, if there is one.
    Stopped,
    /// Image, network, disk and seed are being made ready. `fresh`: the machine did not exist before.
    Preparing {
        /// Nothing of it existed before this start.
        fresh: bool,
    },
    /// The VMM is being started.
    Launching,
    /// The guest boots; nobody could log in yet.
    Booting,
    /// A login has succeeded.
    Running,
    /// The virtual CPUs are halted.
    Paused,
    /// The VMM is on its way out.
    Ending(Then),
    /// No VMM; the last boot did not end well.
    Failed,
    /// Deleted.
    Gone,
}

impl Phase {
    /// Whether a VMM process exists, or may.
    #[must_use]
    pub fn has_vmm(self) -> bool {
        matches!(self, Self::Launching | Self::Booting | Self::Running | Self::Paused | Self::Ending(_))
    }
}

/// What a machine is asked for, or what happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Bring it up. `fresh`: nothing of it exists yet.
    Start {
        /// Nothing of it exists yet.
        fresh: bool,
    },
    /// End it. Not `gentle`: at once.
    Stop {
        /// By the power button first.
        gentle: bool,
    },
    /// Delete it.
    Destroy,
    /// Halt its virtual CPUs.
    Pause,
    /// Let them run.
    Resume,
    /// Cut its power and boot it again.
    Reset,
    /// Nobody waits for the start any more.
    Cancelled,
    /// Everything for the VMM is there.
    Prepared,
    /// It is not, and will not be.
    PrepareFailed,
    /// The VMM answers.
    Launched,
    /// The VMM could not be started; none is left.
    LaunchFailed,
    /// The first verified login.
    Ready,
    /// The boot took too long, or the console showed that it will never end.
    BootFailed,
    /// The guest powered itself off.
    PoweredOff,
    /// The guest rebooted itself.
    Rebooted,
    /// The guest's kernel panicked.
    Panicked,
    /// The VMM halted the virtual CPUs.
    DidPause,
    /// The VMM lets them run again.
    DidResume,
    /// The VMM has ended and is reaped.
    Exited,
}

/// What the shell is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make image, network, disk and seed ready; answers `Prepared` or `PrepareFailed`.
    Prepare,
    /// Drop the preparation that is under way; it undoes its own half-made things.
    AbortPrepare,
    /// Start the VMM; answers `Launched` or `LaunchFailed`.
    Launch,
    /// Watch the boot; answers `Ready` or `BootFailed`.
    AwaitBoot,
    /// Ask the guest to shut down, then escalate.
    EndGently,
    /// The guest has ended or is beyond asking: let the VMM end, then escalate.
    EndVmm,
    /// SIGKILL.
    Kill,
    /// Ask the VMM to halt the virtual CPUs.
    PauseVmm,
    /// Ask the VMM to let them run.
    ResumeVmm,
    /// Take the machine's tap off the network.
    Detach,
    /// Delete every file of the machine.
    Delete,
    /// Tell those who wait for the start that it has come up.
    AnswerStarted,
    /// Tell those who wait for the start that it has not.
    AnswerStartFailed,
    /// Tell those who wait for its end.
    AnswerEnded,
}

/// A request that has no meaning in the phase the machine is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

type Step = Result<(Phase, Vec<Action>), Refused>;

/// What happens next.
///
/// # Errors
/// [`Refused`] for a request that has no meaning now. Happenings are never refused: one that comes late
/// changes nothing.
pub fn step(phase: Phase, input: Input) -> Step {
    use Action as A;
    use Input as I;
    use Phase as P;

    let stay = Ok((phase, vec![]));
    match (phase, input) {
        (P::Gone, I::Destroy | I::Stop { .. }) => Ok((P::Gone, vec![A::AnswerEnded])),
        (P::Gone, I::Start { .. } | I::Pause | I::Resume | I::Reset) => Err(Refused),
        (P::Gone, _) => stay,

        // Requests.
        (P::Stopped | P::Failed, I::Start { fresh }) => Ok((P::Preparing { fresh }, vec![A::Prepare])),
        (P::Running | P::Paused, I::Start { .. }) => Ok((phase, vec![A::AnswerStarted])),
        (P::Preparing { .. } | P::Launching | P::Booting | P::Ending(Then::Boot), I::Start { .. }) => stay,
        (P::Ending(_), I::Start { .. }) => Err(Refused),

        (P::Stopped | P::Failed, I::Stop { .. }) => Ok((P::Stopped, vec![A::AnswerEnded])),
        (P::Preparing { fresh }, I::Stop { .. } | I::Cancelled) => Ok(abort(fresh)),
        (P::Running | P::Paused, I::Cancelled) => stay,
        (P::Launching | P::Booting, I::Cancelled) => {
            Ok((P::Ending(Then::Stop), vec![A::AnswerStartFailed, A::Kill]))
        }
        (P::Running, I::Stop { gentle: true }) => Ok((P::Ending(Then::Stop), vec![A::EndGently])),
        // A guest that is not up yet, or is halted, hears no power button.
        (P::Launching | P::Booting, I::Stop { gentle: true }) => {
            Ok((P::Ending(Then::Stop), vec![A::AnswerStartFailed, A::EndVmm]))
        }
        (P::Paused, I::Stop { gentle: true }) => Ok((P::Ending(Then::Stop), vec![A::EndVmm])),
        (P::Launching | P::Booting, I::Stop { gentle: false }) => {
            Ok((P::Ending(Then::Stop), vec![A::AnswerStartFailed, A::Kill]))
        }
        (P::Running | P::Paused, I::Stop { gentle: false }) => Ok((P::Ending(Then::Stop), vec![A::Kill])),
        (P::Ending(then), I::Stop { gentle }) => {
            // Somebody may wait for a start that the guest's reboot has interrupted.
            let (then, mut actions) = match then {
                Then::Boot => (Then::Stop, vec![A::AnswerStartFailed]),
                then => (then, vec![]),
            };
            if !gentle {
                actions.push(A::Kill);
            }
            Ok((P::Ending(then), actions))
        }

        (P::Stopped | P::Failed, I::Destroy) => Ok((P::Gone, vec![A::Detach, A::Delete, A::AnswerEnded])),
        (P::Preparing { .. }, I::Destroy) => {
            Ok((P::Gone, vec![A::AbortPrepare, A::AnswerStartFailed, A::Detach, A::Delete, A::AnswerEnded]))
        }
        (P::Launching | P::Booting | P::Ending(Then::Boot), I::Destroy) => {
            Ok((P::Ending(Then::Delete), vec![A::AnswerStartFailed, A::Kill]))
        }
        (P::Running | P::Paused | P::Ending(_), I::Destroy) => Ok((P::Ending(Then::Delete), vec![A::Kill])),

        (P::Running, I::Pause) => Ok((P::Running, vec![A::PauseVmm])),
        (P::Paused, I::Pause) | (P::Running, I::Resume) => stay,
        (P::Paused, I::Resume) => Ok((P::Paused, vec![A::ResumeVmm])),
        (P::Running | P::Paused, I::Reset) => Ok((P::Ending(Then::Boot), vec![A::Kill])),
        (_, I::Pause | I::Resume | I::Reset) => Err(Refused),
        (_, I::Cancelled) => stay,

        // What the shell reports of its own work.
        (P::Preparing { .. }, I::Prepared) => Ok((P::Launching, vec![A::Launch])),
        (P::Preparing { fresh }, I::PrepareFailed) => Ok(prepare_failed(fresh)),
        (P::Launching, I::Launched) => Ok((P::Booting, vec![A::AwaitBoot])),
        // The VMM came up after its end was decided: now there is something to end.
        (P::Ending(_), I::Launched) => Ok((phase, vec![A::Kill])),
        (P::Launching, I::LaunchFailed) => Ok((P::Failed, vec![A::Detach, A::AnswerStartFailed])),
        (P::Ending(then), I::LaunchFailed | I::Exited) => Ok(ended(then)),
        (P::Booting, I::Ready) => Ok((P::Running, vec![A::AnswerStarted])),
        (P::Booting, I::BootFailed) => Ok((P::Ending(Then::Fail), vec![A::AnswerStartFailed, A::Kill])),

        // What the guest and the VMM do by themselves.
        (P::Booting, I::PoweredOff) => Ok((P::Ending(Then::Stop), vec![A::AnswerStartFailed, A::EndVmm])),
        (P::Running | P::Paused, I::PoweredOff) => Ok((P::Ending(Then::Stop), vec![A::EndVmm])),
        (P::Booting | P::Running | P::Paused, I::Rebooted) => Ok((P::Ending(Then::Boot), vec![A::EndVmm])),
        (P::Booting, I::Panicked) => Ok((P::Ending(Then::Fail), vec![A::AnswerStartFailed, A::Kill])),
        (P::Running | P::Paused, I::Panicked) => Ok((P::Ending(Then::Fail), vec![A::Kill])),
        (P::Running, I::DidPause) => Ok((P::Paused, vec![])),
        (P::Paused, I::DidResume) => Ok((P::Running, vec![])),
        (P::Booting, I::Exited) => Ok((P::Failed, vec![A::Detach, A::AnswerStartFailed, A::AnswerEnded])),
        (P::Running | P::Paused, I::Exited) => Ok((P::Failed, vec![A::Detach, A::AnswerEnded])),

        // Late news.
        (
            _,
            I::Prepared
            | I::PrepareFailed
            | I::Launched
            | I::LaunchFailed
            | I::Ready
            | I::BootFailed
            | I::PoweredOff
            | I::Rebooted
            | I::Panicked
            | I::DidPause
            | I::DidResume
            | I::Exited,
        ) => stay,
    }
}

fn abort(fresh: bool) -> (Phase, Vec<Action>) {
    let (phase, mut rest) = prepare_failed(fresh);
    rest.insert(0, Action::AbortPrepare);
    rest.push(Action::AnswerEnded);
    (phase, rest)
}

fn prepare_failed(fresh: bool) -> (Phase, Vec<Action>) {
    if fresh {
        (Phase::Gone, vec![Action::Detach, Action::Delete, Action::AnswerStartFailed])
    } else {
        (Phase::Stopped, vec![Action::Detach, Action::AnswerStartFailed])
    }
}

fn ended(then: Then) -> (Phase, Vec<Action>) {
    use Action as A;
    match then {
        Then::Stop => (Phase::Stopped, vec![A::Detach, A::AnswerEnded]),
        Then::Fail => (Phase::Failed, vec![A::Detach, A::AnswerEnded]),
        // The network and the files are still there: only the VMM is new.
        Then::Boot => (Phase::Launching, vec![A::Launch]),
        Then::Delete => (Phase::Gone, vec![A::Detach, A::Delete, A::AnswerEnded]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_start_that_a_reboot_interrupted_is_answered_when_the_machine_is_ended() {
        let rebooting = Phase::Ending(Then::Boot);
        for (input, then) in [
            (Input::Stop { gentle: true }, Then::Stop),
            (Input::Stop { gentle: false }, Then::Stop),
            (Input::Destroy, Then::Delete),
        ] {
            let (phase, actions) = step(rebooting, input).unwrap();
            assert_eq!(phase, Phase::Ending(then));
            assert_eq!(actions[0], Action::AnswerStartFailed, "{input:?}");
        }
    }

    fn any_input() -> impl Strategy<Value = Input> {
        use Input as I;
        prop_oneof![
            any::<bool>().prop_map(|fresh| I::Start { fresh }),
            any::<bool>().prop_map(|gentle| I::Stop { gentle }),
            prop::sample::select(vec![I::Destroy, I::Pause, I::Resume, I::Reset, I::Cancelled]),
            prop::sample::select(vec![
                I::Prepared,
                I::PrepareFailed,
                I::Launched,
                I::LaunchFailed,
                I::Ready,
                I::BootFailed,
                I::PoweredOff,
                I::Rebooted,
                I::Panicked,
                I::DidPause,
                I::DidResume,
                I::Exited,
            ]),
        ]
    }

    /// A world that keeps count of what the actions do, and only lets happen what can.
    #[derive(Debug, Default)]
    struct World {
        preparing: bool,
        launching: bool,
        vmm: bool,
        deleted: bool,
        waiting_start: bool,
        waiting_end: bool,
    }

    impl World {
        fn possible(&self, input: Input) -> bool {
            use Input as I;
            match input {
                I::Prepared | I::PrepareFailed => self.preparing,
                I::Launched | I::LaunchFailed => self.launching,
                I::Ready | I::BootFailed | I::PoweredOff | I::Rebooted | I::Panicked => self.vmm,
                I::DidPause | I::DidResume | I::Exited => self.vmm,
                _ => true,
            }
        }

        fn happen(&mut self, input: Input) {
            match input {
                Input::Prepared | Input::PrepareFailed => self.preparing = false,
                Input::Launched => (self.launching, self.vmm) = (false, true),
                Input::LaunchFailed => self.launching = false,
                Input::Exited => self.vmm = false,
                _ => {}
            }
        }

        fn act(&mut self, action: Action) {
            match action {
                Action::Prepare => {
                    assert!(!self.preparing && !self.launching && !self.vmm && !self.deleted);
                    self.preparing = true;
                }
                Action::AbortPrepare => {
                    assert!(self.preparing);
                    self.preparing = false;
                }
                Action::Launch => {
                    assert!(!self.vmm && !self.launching, "two VMMs on one disk");
                    assert!(!self.deleted);
                    self.launching = true;
                }
                Action::Delete => {
                    assert!(!self.vmm && !self.launching && !self.preparing, "deleted under a VMM");
                    self.deleted = true;
                }
                Action::Detach => assert!(!self.vmm && !self.launching, "network taken from under a VMM"),
                Action::AnswerStarted => {
                    assert!(self.vmm);
                    self.waiting_start = false;
                }
                Action::AnswerStartFailed => self.waiting_start = false,
                Action::AnswerEnded => {
                    assert!(!self.vmm && !self.launching);
                    self.waiting_end = false;
                }
                Action::AwaitBoot
                | Action::EndGently
                | Action::EndVmm
                | Action::Kill
                | Action::PauseVmm
                | Action::ResumeVmm => {}
            }
        }
    }

    proptest! {
        #[test]
        fn no_history_breaks_an_invariant(inputs in proptest::collection::vec(any_input(), 0..60)) {
            let mut phase = Phase::Stopped;
            let mut world = World::default();
            let mut asked_to_delete = false;
            let mut fresh = false;
            for input in inputs {
                if !world.possible(input) {
                    continue;
                }
                world.happen(input);
                match step(phase, input) {
                    Err(Refused) => {
                        let refusable = matches!(input, Input::Start { .. } | Input::Pause | Input::Resume | Input::Reset);
                        prop_assert!(refusable, "{:?} was refused", input);
                        continue;
                    }
                    Ok((next, actions)) => {
                        match input {
                            Input::Destroy => asked_to_delete = true,
                            Input::Start { fresh: f } if matches!(phase, Phase::Stopped | Phase::Failed) => fresh = f,
                            Input::Start { .. } => world.waiting_start = true,
                            Input::Stop { .. } => world.waiting_end = true,
                            Input::Prepared => fresh = false,
                            _ => {}
                        }
                        for a in &actions {
                            world.act(*a);
                        }
                        // A disk goes only where that was asked for, or where the machine never came to be.
                        prop_assert!(!world.deleted || asked_to_delete || fresh, "{phase:?} {input:?}");
                        prop_assert_eq!(world.deleted, next == Phase::Gone);
                        // The phase tells whether a VMM may exist.
                        prop_assert!(next.has_vmm() || !(world.vmm || world.launching), "{:?}", next);
                        // Nobody is left waiting in a phase that nothing leads out of.
                        if matches!(next, Phase::Stopped | Phase::Failed | Phase::Gone) {
                            prop_assert!(!world.waiting_start && !world.waiting_end, "{:?} {:?} {:?}", phase, input, next);
                        }
                        phase = next;
                    }
                }
            }
        }

        #[test]
        fn a_destroy_always_leads_to_gone(inputs in proptest::collection::vec(any_input(), 0..40)) {
            let mut phase = Phase::Stopped;
            for input in inputs {
                if let Ok((next, _)) = step(phase, input) {
                    phase = next;
                }
            }
            let (next, _) = step(phase, Input::Destroy).unwrap();
            let end = if next == Phase::Gone { next } else { step(next, Input::Exited).unwrap().0 };
            prop_assert_eq!(end, Phase::Gone);
        }
    }

    #[test]
    fn a_guest_reboot_boots_again_and_its_poweroff_stops() {
        let (p, a) = step(Phase::Running, Input::Rebooted).unwrap();
        assert_eq!((p, a), (Phase::Ending(Then::Boot), vec![Action::EndVmm]));
        assert_eq!(step(p, Input::Exited).unwrap(), (Phase::Launching, vec![Action::Launch]));
        let (p, _) = step(Phase::Running, Input::PoweredOff).unwrap();
        assert_eq!(step(p, Input::Exited).unwrap().0, Phase::Stopped);
    }

    #[test]
    fn a_killed_vmm_is_a_failure_and_a_stop_in_the_middle_of_a_reboot_is_a_stop() {
        assert_eq!(step(Phase::Running, Input::Exited).unwrap().0, Phase::Failed);
        let (p, _) = step(Phase::Ending(Then::Boot), Input::Stop { gentle: true }).unwrap();
        assert_eq!(step(p, Input::Exited).unwrap().0, Phase::Stopped);
    }
}

use crate::Core;
use crate::notes::Note;
use undercroft_wire::{Finding, OtherProbe, PageKey, Refused, RefusedReason, SessionId, SpaceId};

/// Telling clients apart that would name one prompt differently.
impl Core {
    /// A session that is about to open a space tells what its hash makes of the probe prefix. To be
    /// asked again right before the space is opened.
    ///
    /// # Errors
    /// Others have told another key, and have the space open or left pages in it: neither would ever
    /// find the other's.
    pub fn probe_space(
        &mut self,
        session: SessionId,
        space: SpaceId,
        told: PageKey,
    ) -> Result<(), Refused> {
        let entry = self.spaces.get_mut(space);
        if entry.probe == Some(told) {
            return Ok(());
        }
        let unused = entry.pages == 0 && entry.opened == 0;
        if let Some(known) = entry.probe.filter(|_| !unused) {
            let digest = entry.digest;
            let (known, told) = (known.head(), told.head());
            self.stats.refused_probes += 1;
            let other = OtherProbe { space: digest, known, told };
            self.note_finding(session, Finding::OtherProbe(other));
            return Err(refused(&other));
        }
        entry.probe = Some(told);
        self.notes.add(|| Note::SpaceProbe { space, probe: told });
        Ok(())
    }
}

fn refused(other: &OtherProbe) -> Refused {
    let hex = |head: [u8; 8]| head.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let OtherProbe { space, known, told } = other;
    let detail = format!(
        "this client names the probe prefix {} and others of space {space} name it {}: their hashes or \
         hash seeds differ (PYTHONHASHSEED, hash function, versions), and neither would find the \
         other's pages. Make them equal, or purge the space once nobody else has it open",
        hex(*told),
        hex(*known)
    );
    Refused { reason: RefusedReason::Invalid, detail }
}

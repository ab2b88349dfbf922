use crate::Core;
use crate::fetches::Reader;

impl Core {
    pub(super) fn audit_domains(&self) {
        for (at, domain) in self.domains.iter() {
            let (limits, had) = (domain.config.limits, domain.had);
            let sessions = || self.sessions.values().filter(|session| session.domain == at);
            assert_eq!(sessions().count(), domain.sessions as usize, "sessions are counted");
            let most = limits.max_sessions.max(domain.restored_sessions).max(had.sessions);
            assert!(domain.sessions <= most, "sessions are bounded");
            let own = self.spaces.iter().filter(|space| space.domain == domain.config.id);
            let pages: u64 = own.map(|space| space.pages).sum();
            assert_eq!(pages, u64::from(domain.pages), "a domain's pages are counted");
            let on_ssd = self
                .index
                .iter()
                .filter(|(_, page)| page.has_record() && self.domain_of_space(page.space) == at);
            let bytes = on_ssd.map(|(id, _)| self.frame_bytes(self.class_of(id)));
            let (pages, bytes) = bytes.fold((0, 0), |(pages, sum), bytes| (pages + 1, sum + bytes));
            assert_eq!(
                (pages, bytes),
                (domain.ssd.pages, domain.ssd.bytes),
                "its records are counted"
            );
            assert!(
                domain.pages <= limits.max_pages.max(had.pages),
                "a domain's pages are bounded"
            );
            let leased: u32 = sessions().map(|session| session.leased_pages).sum();
            assert_eq!(leased, domain.leased_pages, "leased pages are counted");
            let most =
                limits.max_leased_pages.max(domain.restored_leased_pages).max(had.leased_pages);
            assert!(leased <= most, "leases are bounded");
            let holds = || self.holds.values().filter(|hold| hold.domain == at);
            assert_eq!(holds().count(), domain.holds as usize, "holds are counted");
            assert!(domain.holds <= limits.max_holds.max(had.holds), "holds are bounded");
            let held: usize = holds().map(|hold| hold.pages.len()).sum();
            assert_eq!(held, domain.held_pages as usize, "held pages are counted");
            assert!(
                domain.held_pages <= limits.max_held_pages.max(had.held_pages),
                "held pages are bounded"
            );
            let tokens = self.tokens.iter().filter(|(_, offered)| offered.domain == at);
            assert_eq!(tokens.count(), domain.tokens as usize, "tokens are counted");
            assert!(domain.tokens <= limits.max_tokens.max(had.tokens), "tokens are bounded");
            let prefetches = self.fetches.values().filter(|fetch| {
                let class = self.frames.class(fetch.class);
                fetch.reader == Reader::Prefetch && class.domain == at
            });
            assert_eq!(prefetches.count(), domain.prefetches as usize, "prefetches are counted");
            assert!(
                domain.prefetches <= limits.max_prefetches.max(had.prefetches),
                "prefetches are bounded"
            );
        }
        for session in self.sessions.values() {
            for space in session.stagings.keys() {
                let domain = self.domain_of_space(*space);
                assert_eq!(domain, session.domain, "a session has spaces of its own domain only");
            }
        }
        for (id, class) in self.frames.classes() {
            let of_class = |space: &crate::SpaceInfo| self.spaces.get(space.id).class == id;
            let counted = self.spaces.iter().filter(of_class).count();
            assert_eq!(counted, class.spaces as usize, "a class counts its spaces");
        }
        for space in self.spaces.iter() {
            let domain = self.domains.get(self.domain_of_space(space.id));
            assert_eq!(domain.config.id, space.domain, "a space's frames are its domain's");
        }
    }
}

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use undercroft_client::wire::{
    Chain, Commit, Dtype, Family, Fetch, FetchEnd, FetchSource, Geometry, Hello, KeyRun, LeaseId,
    MAX_KEYS, Mode, Offer, OfferReply, OpenSpace, PROTOCOL_MAX, PROTOCOL_MIN, PageKey, PagePlace,
    Rank, Refused, Reply, Request, RequestId, SessionId, Space, SpaceId, Stamp, decode_reply,
    encode_request, split_frame,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// The most descriptors one message can carry (the kernel's `SCM_MAX_FD`).
const MAX_FDS: usize = 253;
/// Bytes of a page of these clients.
const FRAGMENT_BYTES: u32 = 4 << 10;

/// A session that speaks the wire format by itself, and keeps every descriptor it is given.
#[derive(Debug)]
pub struct RawClient {
    stream: UnixStream,
    inbox: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    /// Its number.
    pub session: SessionId,
    /// How pages reach it.
    pub mode: Mode,
    /// The arena's parts.
    pub parts: Vec<OwnedFd>,
    /// Its domain's board.
    pub board: Option<OwnedFd>,
}

/// A space of a raw client.
#[derive(Debug)]
pub struct RawSpace {
    /// Its number.
    pub id: SpaceId,
    /// Slots of its staging area.
    pub slots: u32,
    /// Bytes from one slot to the next.
    pub slot_bytes: u32,
    /// The staging area.
    pub staging: OwnedFd,
}

impl RawClient {
    /// Connects and says hello.
    ///
    /// # Errors
    /// The daemon is not there, or does not welcome it.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        let mut client = Self::inherit(stream)?;
        let name = "hostile".to_owned();
        let hello = Hello { min: PROTOCOL_MIN, max: PROTOCOL_MAX, name, copy_mode: false };
        match client.ask(&Request::Hello(hello))? {
            Reply::Welcome(welcome) => {
                (client.session, client.mode) = (welcome.session, welcome.mode)
            }
            other => return Err(Error::other(format!("not welcome: {other:?}"))),
        }
        // An answer to anything comes after all parts.
        match client.ask(&Request::Ping)? {
            Reply::Done => Ok(client),
            other => Err(Error::other(format!("no sign of life: {other:?}"))),
        }
    }

    /// A session that another process began, over its socket.
    ///
    /// # Errors
    /// The socket is none.
    pub fn inherit(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let (inbox, fds, parts, board) = (Vec::new(), VecDeque::new(), Vec::new(), None);
        Ok(Self { stream, inbox, fds, session: SessionId(0), mode: Mode::Copy, parts, board })
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The daemon hung up.
    pub fn send(&mut self, message: &Request<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        encode_request(&mut bytes, RequestId(1), message);
        self.send_bytes(&bytes)
    }

    /// Sends anything.
    ///
    /// # Errors
    /// The daemon hung up.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a request and as many descriptors with it as a message takes.
    ///
    /// # Errors
    /// The daemon hung up.
    pub fn send_with_descriptors(&mut self, message: &Request<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        encode_request(&mut bytes, RequestId(1), message);
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [self.stream.as_fd(); MAX_FDS];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "room for all of them");
        let sent =
            sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        assert_eq!(sent, bytes.len(), "a small message goes at once");
        Ok(())
    }

    /// The next reply that answers something. Descriptors go where they belong.
    ///
    /// # Errors
    /// The daemon hung up, or says nothing for long.
    pub fn reply(&mut self) -> Result<Reply> {
        loop {
            let invalid = |error| Error::new(ErrorKind::InvalidData, error);
            let Some((header, body, taken)) = split_frame(&self.inbox).map_err(invalid)? else {
                self.receive()?;
                continue;
            };
            let (_, reply) = decode_reply(&header, body).map_err(invalid)?;
            self.inbox.drain(..taken);
            match reply {
                Reply::PartAdded(_) => self.parts.extend(self.fds.pop_front()),
                Reply::BoardAdded(_) => self.board = self.fds.pop_front(),
                reply => return Ok(reply),
            }
        }
    }

    fn receive(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(&self.stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if got.bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.inbox.extend_from_slice(&bytes[..got.bytes]);
        Ok(())
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The daemon hung up, or says nothing for long.
    pub fn ask(&mut self, message: &Request<'_>) -> Result<Reply> {
        self.send(message)?;
        self.reply()
    }

    /// Opens the space of a rank of the one model these clients serve.
    ///
    /// # Errors
    /// The daemon hung up.
    pub fn open(&mut self, rank: u16) -> Result<std::result::Result<RawSpace, Refused>> {
        self.open_as(&Self::space(rank))
    }

    /// Opens any space.
    ///
    /// # Errors
    /// The daemon hung up.
    pub fn open_as(&mut self, space: &Space) -> Result<std::result::Result<RawSpace, Refused>> {
        match self.ask(&Request::OpenSpace(OpenSpace { space: space.clone(), probe: None }))? {
            Reply::SpaceOpened(opened) => {
                let staging = self.fds.pop_front().ok_or(ErrorKind::InvalidData)?;
                let (id, slots, slot_bytes) = (opened.space, opened.slots, opened.slot_bytes);
                Ok(Ok(RawSpace { id, slots, slot_bytes, staging }))
            }
            Reply::Refused(refused) => Ok(Err(refused)),
            other => Err(Error::other(format!("instead of a space: {other:?}"))),
        }
    }

    /// Offers a chain from its start.
    ///
    /// # Errors
    /// The daemon hung up or refuses.
    pub fn offer(&mut self, space: SpaceId, keys: &[PageKey]) -> Result<OfferReply> {
        let offer =
            Offer { space, parent: None, first: 0, keys: KeyRun::from(keys), stamp: Stamp(0) };
        match self.ask(&Request::Offer(offer))? {
            Reply::Offer(reply) => Ok(reply),
            other => Err(Error::other(format!("no answer to an offer: {other:?}"))),
        }
    }

    /// Offers a chain and commits what is wanted of it, whatever its slots hold; what became of
    /// each slot.
    ///
    /// # Errors
    /// The daemon hung up or refuses.
    pub fn store(&mut self, space: SpaceId, keys: &[PageKey]) -> Result<Vec<u8>> {
        let wanted = self.offer(space, keys)?;
        let (offer, filled, returned) = (wanted.offer, wanted.slots, Vec::new());
        match self.ask(&Request::Commit(Commit { space, offer, filled, returned }))? {
            Reply::Commit(reply) => Ok(reply.outcomes),
            other => Err(Error::other(format!("no answer to a commit: {other:?}"))),
        }
    }

    /// Fetches pages under a lease; how that ended and where the pages lie.
    ///
    /// # Errors
    /// The daemon hung up or refuses.
    pub fn fetch(
        &mut self,
        space: SpaceId,
        source: FetchSource<'_>,
        lease: LeaseId,
    ) -> Result<(FetchEnd, Vec<PagePlace>)> {
        let fetch =
            Fetch { space, lease, source, stamp: Stamp(0), deadline_ms: 10_000, recompute_ns: 0 };
        self.send(&Request::Fetch(fetch))?;
        let mut places = Vec::new();
        loop {
            match self.reply()? {
                Reply::FetchReady(ready) => places.extend(ready.places),
                Reply::FetchEnd(end) => return Ok((end, places)),
                other => return Err(Error::other(format!("no pages: {other:?}"))),
            }
        }
    }

    /// The space of a rank.
    ///
    /// # Panics
    /// Never: there can be such a page.
    #[must_use]
    pub fn space(rank: u16) -> Space {
        let family = Family {
            model: [66; 32],
            adapter: [0; 32],
            dtype: Dtype::Bf16,
            quantization: "none".to_owned(),
            attention: "full".to_owned(),
            layout: "layer, part, block".to_owned(),
            layers: 2,
            kv_heads: 1,
            page_tokens: 16,
        };
        let geometry = Geometry::new(2, 2, FRAGMENT_BYTES).expect("a small page");
        Space { family, rank: Rank::Of { index: rank, count: 1000 }, group: 0, geometry }
    }

    /// The keys of the first pages of a conversation.
    #[must_use]
    pub fn keys(conversation: u32, pages: u32) -> Vec<PageKey> {
        let mut chain = Chain::new(&Self::space(0).family.digest(), b"");
        (0..pages.min(MAX_KEYS as u32)).map(|page| chain.push(&[conversation, page])).collect()
    }
}

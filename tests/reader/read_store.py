#!/usr/bin/env python3
"""Lists and verifies an Undercroft page log: a second reader, written from docs/disk-format.md.

It shares nothing with the daemon but that page, so each checks the other. Python 3.11 or later
and, for encrypted stores, the package `cryptography` (requirements.txt).
"""

import argparse
import fcntl
import hashlib
import hmac
import json
import os
import struct
import sys
from dataclasses import dataclass, field

BLOCK = 4096
DATA_START = 65536
VERSION = 2
LAST_GENERATION = (1 << 32) - 1
MAX_SEGMENT_BYTES = 8 << 30
ENTRIES = 23
ENTRY_BYTES = 168
KEY_ID_STORE = 1
CRC_PROOF, TAG_PROOF = 1, 2
PROOF_NAMES = {CRC_PROOF: "crc-64-nvme", TAG_PROOF: "aes-256-gcm"}

SUPERBLOCK = struct.Struct("<8sII16sQQQI16s")
HEADER = struct.Struct("<8sII16sIIQ32s")
TABLE = struct.Struct("<8sIHH16sIIQ12s")
ENTRY = struct.Struct("<16s32s32s32sIIIIHBBIQ16sII")
PURGES = struct.Struct("<8sIIIIII32s")
PURGE = struct.Struct("<16s32sIIB7x")
MAX_PURGES_BYTES = 64 + 4096 * 64 + 24
PREAMBLE = struct.Struct("<8sIHBB16sIIQ16s32s32s32sIIIIQ")


class Refused(Exception):
    """The store cannot be read at all; the text is one line for people."""


class Corrupt(Exception):
    """Something does not prove itself."""


class Foreign(Exception):
    """A block is not what was looked for, and need not be."""


# Sums, keys and ciphers.


def crc_tables():
    """Eight bytes at a time: table k is what a byte does that has k more behind it."""
    first = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x9A6C9329AC4BC9B5 if byte & 1 else 0)
        first.append(byte)
    tables = [first]
    for _ in range(7):
        tables.append([value >> 8 ^ first[value & 255] for value in tables[-1]])
    return tables


T0, T1, T2, T3, T4, T5, T6, T7 = crc_tables()


def crc64(data, crc=0):
    """CRC-64/NVME of what came before, whose CRC is `crc`, and of `data`."""
    crc ^= 0xFFFFFFFFFFFFFFFF
    whole = len(data) & ~7
    for (word,) in struct.iter_unpack("<Q", data[:whole]):
        x = crc ^ word
        crc = (
            T7[x & 255]
            ^ T6[x >> 8 & 255]
            ^ T5[x >> 16 & 255]
            ^ T4[x >> 24 & 255]
            ^ T3[x >> 32 & 255]
            ^ T2[x >> 40 & 255]
            ^ T1[x >> 48 & 255]
            ^ T0[x >> 56]
        )
    for byte in data[whole:]:
        crc = T0[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFFFFFFFFFF


def hkdf(salt, secret, info, length):
    """HKDF-SHA256 of at most 32 bytes: extract, then one round of expand."""
    extracted = hmac.digest(salt, secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)[:length]


def open_sealed(key, nonce, sealed, tag, bound):
    """What AES-256-GCM sealed under a nonce; Corrupt if it does not agree with its tag."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(nonce, sealed + tag, bound)
    except InvalidTag:
        raise Corrupt("the tag does not agree") from None


def read_key(path):
    """The store key out of its file."""
    with open(path, "rb") as file:
        found = file.read(67)
    if len(found) == 32:
        return found
    try:
        text = found.decode("ascii").rstrip()
        key = bytes.fromhex(text) if len(text) == 64 and len(found) <= 66 else b""
    except ValueError:
        key = b""
    if len(key) != 32:
        raise Refused(f"{path} is not a store key: allowed are 32 bytes or 64 hexadecimal digits")
    return key


# What lies on the medium.


@dataclass
class Store:
    """The superblock that counts."""

    name: bytes
    generation: int
    segment_bytes: int
    segments: int
    key_check: bytes


@dataclass
class Use:
    """A segment in its present use."""

    store: Store
    segment: int
    number: int
    freed: bool
    key_id: int
    salt: bytes
    sealed: bool = False
    unproved: bytes = b""
    damaged_tables: int = 0
    records: list = field(default_factory=list)

    @property
    def encrypted(self):
        return self.key_id != 0

    def speaks_for(self, number):
        """Whether the use is sealed and its seal speaks for that record."""
        bits = self.unproved[number // 8] if number // 8 < len(self.unproved) else 0
        return self.sealed and not bits >> number % 8 & 1

    def key(self, secret, label, *more):
        place = struct.pack("<16sIQI", self.store.name, self.segment, self.number, self.key_id)
        return hkdf(self.salt, secret, label + place + b"".join(more), 32)


@dataclass
class Record:
    """An entry of a table, and where it was found."""

    use: Use
    number: int
    domain: bytes
    space: bytes
    key: bytes
    parent: bytes | None
    depth: int
    page_bytes: int
    offset_blocks: int
    void: bool
    proof_kind: int
    payload_crc: int
    proof: bytes
    writer: int
    born: int
    purge: int

    @property
    def offset(self):
        segment = DATA_START + self.use.segment * self.use.store.segment_bytes
        return segment + self.offset_blocks * BLOCK

    def preamble(self):
        return PREAMBLE.pack(
            b"UCROFTRC",
            VERSION,
            1 if self.parent is not None else 0,
            0,
            self.proof_kind,
            self.use.store.name,
            self.use.segment,
            self.number,
            self.use.number,
            self.domain,
            self.space,
            self.key,
            self.parent or bytes(32),
            self.depth,
            self.page_bytes,
            self.page_bytes,
            0,
            self.payload_crc,
        )


def whole_block(block, magic, name=None):
    """Tells damage from what was never ours, by the rules of the page."""
    right_magic = block[:8] == magic
    right_name = name is not None and block[16:32] == name
    (crc,) = struct.unpack_from("<Q", block, BLOCK - 8)
    if crc64(block[: BLOCK - 8]) != crc:
        raise Corrupt("the CRC does not agree") if right_magic or right_name else Foreign()
    if not right_magic or (name is not None and not right_name):
        raise Foreign()


def read_superblock(block):
    whole_block(block, b"UCROFTSB")
    fields = SUPERBLOCK.unpack_from(block)
    _, version, flags, name, generation, segment_bytes, room_bytes, segments, check = fields
    if version != VERSION:
        raise Refused(f"format version {version}; allowed is {VERSION}")
    sizes = (segment_bytes, room_bytes)
    shape = all(size % BLOCK == 0 and size <= MAX_SEGMENT_BYTES for size in sizes)
    shape = shape and segment_bytes >= room_bytes + 12288 and 1 <= segments <= 1 << 22
    shape = shape and room_bytes >= 16384
    if flags != 0 or not shape or generation >= LAST_GENERATION:
        raise Corrupt("a superblock that cannot be")
    return Store(name, generation, segment_bytes, segments, check)


def read_header(block, store, segment):
    whole_block(block, b"UCROFTSG", store.name)
    _, version, flags, _, number, key_id, use, salt = HEADER.unpack_from(block)
    if number != segment:
        raise Foreign()
    if version != VERSION or flags & ~1 or key_id not in (0, KEY_ID_STORE) or use >> 32 >= LAST_GENERATION:
        raise Corrupt("a header that cannot be")
    return Use(store, segment, use, bool(flags & 1), key_id, salt)


def read_table(block, use, secret):
    """A table block: its batch, its number of entries, whether it is a seal, its records, and the
    bits of the records that a late seal does not speak for.

    Without the key of an encrypted use there are neither records nor bits.
    """
    whole_block(block, b"UCROFTTB", use.store.name)
    _, version, flags, count, _, segment, batch, number, nonce = TABLE.unpack_from(block)
    if (segment, number) != (use.segment, use.number):
        raise Foreign()
    if version != VERSION or flags not in (0, 1, 3) or count > ENTRIES or (flags == 3 and count):
        raise Corrupt("a table that cannot be")
    entries = block[64:4064]
    if use.encrypted:
        if secret is None:
            return batch, count, bool(flags & 1), [], b""
        key = use.key(secret, b"undercroft table key v1")
        entries = open_sealed(key, nonce, entries, block[4064:4080], block[:64])
    first = ENTRIES * batch
    records = [read_entry(entries, i, use, first + i) for i in range(count)]
    return batch, count, bool(flags & 1), records, entries if flags == 3 else b""


def read_entry(entries, index, use, number):
    fields = ENTRY.unpack_from(entries, index * ENTRY_BYTES)
    domain, space, key, parent, depth, page, stored, offset, *fields = fields
    flags, packing, kind, writer, crc, proof, born, purge = fields
    expected = TAG_PROOF if use.encrypted else CRC_PROOF
    allowed = flags & ~3 == 0 and packing == 0 and kind == expected and stored == page
    if not allowed or not 512 <= page <= 64 << 20:
        raise Corrupt("an entry that cannot be")
    parent = parent if flags & 1 else None
    void = bool(flags & 2)
    place = (depth, page, offset, void)
    origin = (writer, born, purge)
    return Record(use, number, domain, space, key, parent, *place, kind, crc, proof, *origin)


@dataclass
class Purges:
    """What was forgotten for good, as the file beside the page log lists it."""

    last: int = 0
    floor: int = 0
    purges: list = field(default_factory=list)

    def covers(self, record):
        """Whether a record was purged after it was written."""
        if record.purge < self.floor:
            return True
        of = (record.domain, record.space, record.writer)
        return any(
            record.purge < number and all(named in (None, own) for named, own in zip(scope, of))
            for number, scope in self.purges
        )


def read_purges(path, secret):
    """The list beside a page log; None if it cannot be read, and an empty one if there is none."""
    try:
        with open(os.path.join(os.path.dirname(path), "purges"), "rb") as file:
            found = file.read(MAX_PURGES_BYTES + 1)
    except FileNotFoundError:
        return Purges()
    except OSError:
        return None
    if not 88 <= len(found) <= MAX_PURGES_BYTES:
        return None
    magic, version, flags, last, floor, count, _, salt = PURGES.unpack_from(found)
    head, purges, tag = found[:64], found[64:-24], found[-24:-8]
    if crc64(found[:-8]) != int.from_bytes(found[-8:], "little"):
        return None
    if magic != b"UCROFTPL" or version != VERSION or flags > 1 or len(purges) != 64 * count:
        return None
    if flags == 1:
        if secret is None:
            return None
        key = hkdf(salt, secret, b"undercroft purges key v1", 32)
        try:
            purges = open_sealed(key, bytes(12), purges, tag, head)
        except Corrupt:
            return None
    listed = []
    for domain, space, writer, number, named in PURGE.iter_unpack(purges):
        if not 1 <= named <= 7 or not floor < number <= last:
            return None
        scope = [value if named >> bit & 1 else None for bit, value in enumerate((domain, space, writer))]
        listed.append((number, scope))
    return Purges(last, floor, listed) if floor <= last else None


# Reading a store.


class Reader:
    """A page log open for reading."""

    def __init__(self, path, secret):
        self.path = path
        self.secret = secret
        self.file = open(path, "rb")
        try:
            fcntl.flock(self.file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{path} is in use by a daemon: stop it first") from None
        self.damaged_superblocks = 0
        self.damaged_headers = 0
        self.locked_segments = 0
        self.store = self.find_store()
        self.check_key()
        self.purges = read_purges(path, secret)

    def read(self, offset, length):
        found = os.pread(self.file.fileno(), length, offset)
        while 0 < len(found) < length:
            more = os.pread(self.file.fileno(), length - len(found), offset + len(found))
            if not more:
                break
            found += more
        return found.ljust(length, b"\0")

    def find_store(self):
        copies = []
        for offset in (0, BLOCK):
            try:
                copies.append(read_superblock(self.read(offset, BLOCK)))
            except (Corrupt, Foreign):
                self.damaged_superblocks += 1
            except Refused as why:
                raise Refused(f"{self.path} has {why}") from None
        if not copies:
            raise Refused(f"{self.path} is no page log, or both its superblocks are damaged")
        return max(copies, key=lambda copy: copy.generation)

    def check_key(self):
        if self.secret is None or self.store.key_check == bytes(16):
            return
        check = hkdf(self.store.name, self.secret, b"undercroft key check v1", 16)
        if check != self.store.key_check:
            raise Refused(f"{self.path} is encrypted with another key")

    def uses(self):
        """Every segment that is in use, by number."""
        for segment in range(self.store.segments):
            start = DATA_START + segment * self.store.segment_bytes
            try:
                use = read_header(self.read(start, BLOCK), self.store, segment)
            except Foreign:
                continue
            except Corrupt:
                self.damaged_headers += 1
                continue
            if not use.freed:
                self.read_tables(use, start)
                yield use

    def read_tables(self, use, start):
        batches = {}
        strangers = 0
        for index in range(-(-(self.store.segment_bytes // BLOCK - 1) // ENTRIES) + 1):
            at = start + self.store.segment_bytes - (index + 1) * BLOCK
            try:
                found = read_table(self.read(at, BLOCK), use, self.secret)
                batch, count, sealed, records, unproved = found
                strangers = 0
                if batch not in (index, index - 1):
                    raise Corrupt("a table in another's place")
                use.sealed |= sealed
                use.unproved = unproved or use.unproved
                if count > batches.get(batch, (0, []))[0]:
                    batches[batch] = (count, records)
            except Corrupt:
                strangers = 0
                use.damaged_tables += 1
            except Foreign:
                strangers += 1
                if strangers == 2:
                    break
        use.records = [record for batch in sorted(batches) for record in batches[batch][1]]
        self.locked_segments += use.encrypted and self.secret is None

    def verify(self, record):
        """Raises Corrupt unless the record is its page."""
        use = record.use
        blocks = -(-record.page_bytes // BLOCK)
        last = self.store.segment_bytes // BLOCK - blocks
        if not 1 <= record.offset_blocks <= last:
            raise Corrupt("it lies outside its segment")
        page = self.read(record.offset, record.page_bytes)
        preamble = record.preamble()
        if use.encrypted:
            key = use.key(self.secret, b"undercroft record key v1", record.domain)
            nonce = struct.pack("<I8x", record.number)
            page = open_sealed(key, nonce, page, record.proof, preamble)
        else:
            proof = struct.pack("<Q8x", crc64(page, crc64(preamble)))
            if proof != record.proof:
                raise Corrupt("the CRC does not agree")
        if crc64(page) != record.payload_crc:
            raise Corrupt("the CRC of the page does not agree")


def describe(record, purges):
    return {
        "segment": record.use.segment,
        "use": record.use.number,
        "record": record.number,
        "domain": record.domain.hex(),
        "space": record.space.hex(),
        "key": record.key.hex(),
        "parent": None if record.parent is None else record.parent.hex(),
        "depth": record.depth,
        "page_bytes": record.page_bytes,
        "writer": record.writer,
        "born": record.born,
        "purge": record.purge,
        "purged": None if purges is None else purges.covers(record),
        "offset": record.offset,
        "void": record.void,
        "sealed": record.use.speaks_for(record.number),
        "payload_crc": f"{record.payload_crc:016x}",
        "proof_kind": PROOF_NAMES[record.proof_kind],
        "proof": record.proof.hex(),
    }


def report(reader):
    """Everything in the store, verified; as a dictionary."""
    records, segments = [], []
    for use in reader.uses():
        for record in use.records:
            line = describe(record, reader.purges)
            if not record.void:
                try:
                    reader.verify(record)
                    line["damage"] = None
                except Corrupt as why:
                    line["damage"] = str(why)
            records.append(line)
        segments.append(
            {
                "segment": use.segment,
                "use": use.number,
                "state": "sealed" if use.sealed else "unsealed",
                "encrypted": use.encrypted,
                "damaged_tables": use.damaged_tables,
            }
        )
    records.sort(key=lambda line: (line["use"], line["record"]))
    return {
        "store": reader.store.name.hex(),
        "generation": reader.store.generation,
        "segments": segments,
        "records": records,
        "damaged_records": sum(bool(line.get("damage")) for line in records),
        "damaged_tables": sum(segment["damaged_tables"] for segment in segments),
        "damaged_headers": reader.damaged_headers,
        "damaged_superblocks": reader.damaged_superblocks,
        "locked_segments": reader.locked_segments,
    }


def show(found):
    for line in found["records"]:
        state = "void" if line["void"] else line["damage"] or ("purged" if line["purged"] else "good")
        print(
            f"segment {line['segment']} record {line['record']}: key {line['key'][:16]} "
            f"depth {line['depth']}, {line['page_bytes']} bytes at {line['offset']}, "
            f"{line['proof_kind']}: {state}"
        )
    whole = sum(not line["void"] and line["damage"] is None for line in found["records"])
    print(
        f"{whole} records whole, {found['damaged_records']} damaged; damaged tables "
        f"{found['damaged_tables']}, headers {found['damaged_headers']}, superblocks "
        f"{found['damaged_superblocks']}; segments without a key {found['locked_segments']}"
    )


def main():
    parser = argparse.ArgumentParser(description="List and verify an Undercroft page log.")
    parser.add_argument("path", help="the page log")
    parser.add_argument("--key", help="the store's key file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    try:
        secret = None if arguments.key is None else read_key(arguments.key)
        found = report(Reader(arguments.path, secret))
    except (Refused, OSError, ImportError) as why:
        print(f"read_store: {why}", file=sys.stderr)
        return 2
    if arguments.json:
        json.dump(found, sys.stdout, indent=1)
        print()
    else:
        show(found)
    damage = ("records", "tables", "headers", "superblocks")
    return int(any(found[f"damaged_{what}"] for what in damage) or found["locked_segments"] > 0)


if __name__ == "__main__":
    sys.exit(main())

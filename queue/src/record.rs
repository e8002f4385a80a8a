//! Segment and record headers: their octets and nothing else. Formats: `docs/queue-format.md`.
//!
//! Every record header carries the random id of its segment, under its checksum. Octets left by an
//! earlier file or planted in the content of a message therefore never pass for a record.

use crate::id::QueueId;

/// The format version this release writes, and the newest it reads.
pub(crate) const VERSION: u16 = 2;
/// The oldest it reads: version 2 added Change and End records.
const VERSION_MIN: u16 = 1;
/// Records start at multiples of this.
pub(crate) const ALIGN: u64 = 64;
/// Octets of a segment header and of a record header.
pub(crate) const HEADER_OCTETS: usize = 64;
/// The highest sequence that is believed: nobody lives to see it, and what follows it can still be counted.
pub(crate) const SEQUENCE_MAX: u64 = u64::MAX >> 1;
/// The longest content that is believed, 256 TiB: sums of them can still be counted.
pub(crate) const CONTENT_OCTETS_MAX: u64 = (1 << 48) - 1;
/// The most octets of metadata a record may have.
pub(crate) const META_OCTETS_MAX: usize = 16 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"PRoadSeg";
const RECORD_MAGIC: [u8; 4] = *b"PRec";
const SPILLED: u8 = 1;
const SPARE: &str = ".spare";

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message: metadata and, unless spilled, content.
    Message = 1,
    /// The newest state of a message.
    State = 2,
    /// Ids of messages that are done.
    Retired = 3,
    /// A region found damaged and saved elsewhere: `content_octets` behind the header mean nothing.
    Void = 4,
    /// What became other than in the state of a message that the records before this one make.
    Change = 5,
    /// Behind it stands nothing: what is found there is of an earlier use of the file.
    End = 6,
}

impl Kind {
    pub(crate) fn from_octet(octet: u8) -> Option<Kind> {
        [Kind::Message, Kind::State, Kind::Retired, Kind::Void, Kind::Change, Kind::End]
            .into_iter()
            .find(|kind| *kind as u8 == octet)
    }
}

/// The first octets of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Its random id.
    pub segment: u64,
    /// Its number, as in its name.
    pub number: u32,
    /// Number of the segment written before; 0 when there was none.
    pub previous: u32,
    /// Random id of that one.
    pub previous_segment: u64,
    /// Where that one ends.
    pub previous_end: u64,
    /// No id up to this one is ever given to a new message.
    pub id_floor: u64,
}

/// The first octets of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: Kind,
    /// Whether the content lies in a file of its own.
    pub spilled: bool,
    /// Random id of the segment.
    pub segment: u64,
    /// Counts all records of the queue.
    pub sequence: u64,
    pub id: QueueId,
    pub meta_octets: u32,
    pub meta_crc: u32,
    pub content_octets: u64,
    pub content_crc: u32,
}

/// Why a segment header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentHeaderError {
    Damaged,
    /// Sound, but of a later format.
    Version(u16),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_OCTETS] {
        let mut out = [0; HEADER_OCTETS];
        out[0..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..24].copy_from_slice(&self.segment.to_le_bytes());
        out[24..28].copy_from_slice(&self.previous.to_le_bytes());
        out[32..40].copy_from_slice(&self.previous_segment.to_le_bytes());
        out[40..48].copy_from_slice(&self.previous_end.to_le_bytes());
        out[48..56].copy_from_slice(&self.id_floor.to_le_bytes());
        seal(&mut out);
        out
    }

    pub(crate) fn decode(octets: &[u8]) -> Result<SegmentHeader, SegmentHeaderError> {
        let octets = unseal(octets).filter(|o| o[0..8] == SEGMENT_MAGIC).ok_or(SegmentHeaderError::Damaged)?;
        match u16::from_le_bytes([octets[8], octets[9]]) {
            VERSION_MIN..=VERSION => Ok(SegmentHeader {
                number: u32_at(octets, 12),
                segment: u64_at(octets, 16),
                previous: u32_at(octets, 24),
                previous_segment: u64_at(octets, 32),
                previous_end: u64_at(octets, 40),
                id_floor: u64_at(octets, 48),
            }),
            version => Err(SegmentHeaderError::Version(version)),
        }
    }
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_OCTETS] {
        let mut out = [0; HEADER_OCTETS];
        out[0..4].copy_from_slice(&RECORD_MAGIC);
        out[4] = self.kind as u8;
        out[5] = if self.spilled { SPILLED } else { 0 };
        out[8..16].copy_from_slice(&self.segment.to_le_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..32].copy_from_slice(&self.id.to_u64().to_le_bytes());
        out[32..36].copy_from_slice(&self.meta_octets.to_le_bytes());
        out[36..40].copy_from_slice(&self.meta_crc.to_le_bytes());
        out[40..48].copy_from_slice(&self.content_octets.to_le_bytes());
        out[48..52].copy_from_slice(&self.content_crc.to_le_bytes());
        seal(&mut out);
        out
    }

    /// Reads a header; `None` where none stands, or one that no queue has written.
    pub(crate) fn decode(octets: &[u8]) -> Option<Header> {
        if octets.get(0..4) != Some(&RECORD_MAGIC) {
            return None;
        }
        let octets = unseal(octets)?;
        let header = Header {
            kind: Kind::from_octet(octets[4])?,
            spilled: octets[5] & SPILLED != 0,
            segment: u64_at(octets, 8),
            sequence: u64_at(octets, 16),
            id: QueueId::from_u64(u64_at(octets, 24)),
            meta_octets: u32_at(octets, 32),
            meta_crc: u32_at(octets, 36),
            content_octets: u64_at(octets, 40),
            content_crc: u32_at(octets, 48),
        };
        (header.sequence <= SEQUENCE_MAX && header.content_octets <= CONTENT_OCTETS_MAX).then_some(header)
    }

    /// Returns the octets of content inside the record.
    pub(crate) fn inline_octets(&self) -> u64 {
        if self.spilled { 0 } else { self.content_octets }
    }

    /// Returns the octets the record takes in its segment, padding included.
    pub(crate) fn span(&self) -> u64 {
        span(self.meta_octets, self.inline_octets())
    }
}

/// Returns the octets a record takes in its segment, padding included.
pub(crate) fn span(meta_octets: u32, inline_octets: u64) -> u64 {
    (HEADER_OCTETS as u64 + u64::from(meta_octets)).saturating_add(inline_octets).saturating_add(ALIGN - 1) / ALIGN
        * ALIGN
}

/// Returns the file name of a segment.
pub(crate) fn segment_name(number: u32) -> String {
    format!("{number:08x}.seg")
}

/// Returns the name of a segment file in which nothing is needed, kept to be written over.
pub(crate) fn spare_name(number: u32) -> String {
    format!("{number:08x}{SPARE}")
}

/// Returns whether a file is one of those.
pub(crate) fn is_spare(name: &str) -> bool {
    name.ends_with(SPARE)
}

/// Reads the number out of a segment's file name.
pub(crate) fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg").filter(|d| d.len() == 8)?;
    u32::from_str_radix(digits, 16).ok().filter(|n| segment_name(*n) == name)
}

pub(crate) fn seal(octets: &mut [u8; HEADER_OCTETS]) {
    let crc = crc32fast::hash(&octets[..HEADER_OCTETS - 4]);
    octets[HEADER_OCTETS - 4..].copy_from_slice(&crc.to_le_bytes());
}

pub(crate) fn unseal(octets: &[u8]) -> Option<&[u8]> {
    let octets = octets.get(..HEADER_OCTETS)?;
    (crc32fast::hash(&octets[..HEADER_OCTETS - 4]) == u32_at(octets, HEADER_OCTETS - 4)).then_some(octets)
}

pub(crate) fn u32_at(octets: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(octets[at..at + 4].try_into().expect("four octets"))
}

pub(crate) fn u64_at(octets: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(octets[at..at + 8].try_into().expect("eight octets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Message,
            spilled: false,
            segment: 0x1122_3344_5566_7788,
            sequence: 9,
            id: QueueId::from_u64(77),
            meta_octets: 100,
            meta_crc: 1,
            content_octets: 10_000,
            content_crc: 2,
        }
    }

    #[test]
    fn headers_read_back_and_no_flipped_bit_goes_unseen() {
        let octets = header().encode();
        assert_eq!(Header::decode(&octets), Some(header()));
        let segment =
            SegmentHeader { segment: 5, number: 6, previous: 7, previous_segment: 8, previous_end: 9, id_floor: 10 };
        assert_eq!(SegmentHeader::decode(&segment.encode()), Ok(segment));
        for bit in 0..HEADER_OCTETS * 8 {
            let (mut record, mut start) = (octets, segment.encode());
            record[bit / 8] ^= 1 << (bit % 8);
            start[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&record), None, "bit {bit}");
            assert_eq!(SegmentHeader::decode(&start), Err(SegmentHeaderError::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let mut octets =
            SegmentHeader { segment: 5, number: 6, previous: 0, previous_segment: 0, previous_end: 0, id_floor: 0 }
                .encode();
        octets[8] = 3;
        seal(&mut octets);
        assert_eq!(SegmentHeader::decode(&octets), Err(SegmentHeaderError::Version(3)));
    }

    #[test]
    fn only_our_own_names_are_segments() {
        assert_eq!(segment_number("0000001f.seg"), Some(31));
        for name in ["1f.seg", "0000001F.seg", "0000001f.se", "+000001f.seg", "0000001f.seg.seg"] {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }

    #[test]
    fn what_could_not_be_counted_on_is_no_header() {
        for (sequence, content_octets) in [(SEQUENCE_MAX + 1, 0), (u64::MAX, 0), (0, CONTENT_OCTETS_MAX + 1)] {
            assert_eq!(Header::decode(&Header { sequence, content_octets, ..header() }.encode()), None);
        }
    }

    #[test]
    fn a_record_of_absurd_lengths_does_not_overflow() {
        assert!(span(u32::MAX, u64::MAX) >= u64::MAX - 2 * ALIGN);
    }
}

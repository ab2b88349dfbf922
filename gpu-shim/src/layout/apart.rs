//! No two blocks share a byte: a load into one would change another, and nobody would see it.

use super::{KvLayout, LayoutError, Place};

impl KvLayout {
    /// Checks that no byte belongs to two fragments, two blocks or two rows. Tensors are known not
    /// to overlap, and fragments to lie inside theirs.
    pub(super) fn check_apart(&self) -> Result<(), LayoutError> {
        let mut by_tensor: Vec<Vec<usize>> = vec![Vec::new(); self.tensors.len()];
        for (index, place) in self.places.iter().enumerate() {
            if !self.is_apart_from_itself(index) {
                return Err(LayoutError::Fragments { one: index, other: index });
            }
            by_tensor[place.tensor].push(index);
        }
        for mates in &by_tensor {
            for (nth, one) in mates.iter().enumerate() {
                for other in &mates[nth + 1..] {
                    self.check_pair(*one, *other)?;
                }
            }
        }
        Ok(())
    }

    fn is_apart_from_itself(&self, index: usize) -> bool {
        let (place, bytes) = (&self.places[index], u64::from(self.row_bytes(index)));
        let (blocks, rows) = (u64::from(self.blocks), u64::from(place.rows));
        match (blocks, rows) {
            (1, 1) => true,
            (_, 1) => place.block_stride >= bytes,
            (1, _) => place.row_stride >= bytes,
            // All rows of a block before the next block's, or all blocks of a row before the next.
            _ => {
                let rows_inside = place.row_stride >= bytes
                    && place.block_stride >= (rows - 1) * place.row_stride + bytes;
                let blocks_inside = place.block_stride >= bytes
                    && place.row_stride >= (blocks - 1) * place.block_stride + bytes;
                rows_inside || blocks_inside
            }
        }
    }

    fn check_pair(&self, one: usize, other: usize) -> Result<(), LayoutError> {
        let (a, b) = (&self.places[one], &self.places[other]);
        let same_rows = a.rows == b.rows && (a.rows == 1 || a.row_stride == b.row_stride);
        let same_blocks = self.blocks == 1 || a.block_stride == b.block_stride;
        if !same_rows || !same_blocks {
            return Err(LayoutError::Strides { one, other, tensor: a.tensor });
        }
        let (first, second) = if a.offset <= b.offset { (one, other) } else { (other, one) };
        if self.touches(first, second) {
            return Err(LayoutError::Fragments { one, other });
        }
        Ok(())
    }

    /// Whether some row of `second`, which begins no earlier, shares a byte with one of `first`.
    /// Both step alike: what counts is how far each of `first`'s steps comes from the distance
    /// between them. Of two strides the longer spans all steps of the shorter, so that only the
    /// steps just below and just above the distance can come near.
    fn touches(&self, first: usize, second: usize) -> bool {
        let (a, b) = (&self.places[first], &self.places[second]);
        let distance = i128::from(b.offset) - i128::from(a.offset);
        let steps = self.steps_of(a);
        let [(long, most), (short, few)] = steps;
        let around = |left: i128, stride: i128, most: i128| {
            let near = if stride == 0 { 0 } else { left.div_euclid(stride) };
            [near, near + 1].map(|step| step.clamp(-most, most))
        };
        around(distance, long, most).into_iter().any(|longs| {
            let left = distance - longs * long;
            around(left, short, few).into_iter().any(|shorts| {
                let apart = left - shorts * short;
                // Positive: the row of `second` begins behind that of `first`.
                apart < i128::from(self.row_bytes(first))
                    && -apart < i128::from(self.row_bytes(second))
            })
        })
    }

    /// The two strides of a place and how many steps each has, the longer first.
    fn steps_of(&self, place: &Place) -> [(i128, i128); 2] {
        let blocks = match self.blocks {
            1 => (0, 0),
            blocks => (i128::from(place.block_stride), i128::from(blocks - 1)),
        };
        let rows = match place.rows {
            1 => (0, 0),
            rows => (i128::from(place.row_stride), i128::from(rows - 1)),
        };
        if blocks.0 >= rows.0 { [blocks, rows] } else { [rows, blocks] }
    }
}

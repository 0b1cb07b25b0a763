//! The little of ASN.1 that RSA keys need, and the two numbers that OpenSSH leaves out. Pure.

const INTEGER: u8 = 0x02;
const SEQUENCE: u8 = 0x30;

/// A number without its leading zeros.
pub(crate) fn without_zeros(big_endian: &[u8]) -> &[u8] {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    &big_endian[zeros..]
}

/// A sequence of non-negative numbers.
pub(crate) fn sequence(numbers: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    for number in numbers {
        let digits = without_zeros(number);
        let pad = digits.first().is_none_or(|byte| byte & 0x80 != 0);
        header(&mut body, INTEGER, digits.len() + usize::from(pad));
        if pad {
            body.push(0);
        }
        body.extend(digits);
    }
    let mut out = Vec::new();
    header(&mut out, SEQUENCE, body.len());
    out.extend(body);
    out
}

fn header(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    let bytes = length.to_be_bytes();
    let digits = without_zeros(&bytes);
    if length < 0x80 {
        out.push(length as u8);
    } else {
        out.push(0x80 | digits.len() as u8);
        out.extend(digits);
    }
}

/// The numbers of a sequence, as far as it has numbers.
pub(crate) fn numbers(der: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut body, _) = element(der, SEQUENCE)?;
    let mut numbers = Vec::new();
    while let Some((number, rest)) = element(body, INTEGER) {
        numbers.push(without_zeros(number));
        body = rest;
    }
    Some(numbers)
}

fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    if first < 0x80 {
        return rest.split_at_checked(usize::from(first));
    }
    let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
    let length = digits
        .iter()
        .try_fold(0_usize, |length, digit| length.checked_mul(256)?.checked_add(usize::from(*digit)))?;
    rest.split_at_checked(length)
}

/// `number` modulo `modulus - 1`, bit by bit: for the exponents of an RSA key, once per key.
pub(crate) fn modulo_less_one(number: &[u8], modulus: &[u8]) -> Vec<u8> {
    let mut modulus = without_zeros(modulus).to_vec();
    // A prime is odd: nothing is borrowed.
    if let Some(last) = modulus.last_mut() {
        *last &= !1;
    }
    // One byte more, so that doubling never overflows.
    let mut rest = vec![0_u8; modulus.len() + 1];
    modulus.insert(0, 0);
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        let mut carry = bit;
        for digit in rest.iter_mut().rev() {
            let next = *digit >> 7;
            *digit = *digit << 1 | carry;
            carry = next;
        }
        if rest >= modulus {
            let mut borrow = false;
            for (digit, by) in rest.iter_mut().zip(&modulus).rev() {
                let (less, under) = digit.overflowing_sub(*by);
                let (less, under_again) = less.overflowing_sub(u8::from(borrow));
                *digit = less;
                borrow = under || under_again;
            }
        }
    }
    without_zeros(&rest).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_as_they_were_written() {
        let long = [0x81_u8; 300];
        let der = sequence(&[&[0], &[0x7f], &[0x80], &long]);
        let expected: Vec<&[u8]> = vec![&[], &[0x7f], &[0x80], &long];
        assert_eq!(numbers(&der), Some(expected));
        for cut in 0..der.len() {
            // Cut ones are refused or short, never a panic.
            if let Some(numbers) = numbers(&der[..cut]) {
                assert!(numbers.len() < 4);
            }
        }
    }

    #[test]
    fn remainders_are_right() {
        let big = |n: u128| n.to_be_bytes().to_vec();
        for (number, modulus) in [
            (0, 3),
            (1, 3),
            (1_000_003, 257),
            (u128::MAX, 65_537),
            (u128::MAX - 4, (1 << 120) + 1),
            (5, 1_000_001),
        ] {
            let expected: u128 = number % (modulus - 1);
            let got = modulo_less_one(&big(number), &big(modulus));
            assert_eq!(got, without_zeros(&big(expected)), "{number} mod ({modulus} - 1)");
        }
    }
}

#include "sha256.hpp"

#include "check.hpp"

namespace {

std::string hash_of(const std::string& text) {
  toolkit::Sha256 hash;
  hash.update(text.data(), text.size());
  return hash.hex();
}

}  // namespace

int main() {
  // The examples of FIPS 180-4, and NIST's million of 'a'.
  CHECK(hash_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hash_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  const std::string million(1000000, 'a');
  CHECK(hash_of(million) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  toolkit::Sha256 pieces;
  for (std::size_t start = 0, size = 1; start < million.size(); start += size, size = size * 3 % 997 + 1) {
    pieces.update(million.data() + start, std::min(size, million.size() - start));
  }
  CHECK(pieces.hex() == hash_of(million));
  return done();
}

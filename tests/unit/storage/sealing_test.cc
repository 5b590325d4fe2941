// Sealed blocks, one by one; and the master keys that volumes' keys are wrapped with.
#include "storage/sealing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "base/random.h"
#include "storage/master_keys.h"
#include "storage/superblock.h"
#include "tests/unit/storage/index_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::machine_id;

struct Sent {
  wire::BlockHeader header;
  std::vector<std::byte> stored;
  std::vector<std::byte> plain;
};

Sent sent_block(const MachineId& machine, bool compresses, std::uint32_t granules = 3) {
  Random random(5);
  Sent sent;
  sent.plain.resize(granules * limits::kGranuleSize);
  random.fill(compresses ? std::span(sent.plain).first(64) : std::span(sent.plain));
  wire::BlockEncoder encoder(machine);
  encoder.start(DiskId(2), EpochNumber(9));
  encoder.add(40, sent.plain);
  const auto payload = encoder.take();
  std::memcpy(&sent.header, payload.data(), sizeof sent.header);
  sent.stored.assign(payload.begin() + sizeof sent.header, payload.end());
  return sent;
}

std::vector<std::byte> seal(BlockSealer& sealer, const MachineId& machine, const VolumeKey& key, const Sent& sent) {
  std::vector<std::byte> block(sizeof sent.header + sent.stored.size() + wire::kSealedOverhead);
  sealer.seal(machine, key, sent.header, sent.stored, block);
  return block;
}

Status open(const MachineId& machine, const VolumeKey& key, const std::vector<std::byte>& block,
            wire::BlockHeader& header, std::vector<std::byte>& stored) {
  std::memcpy(&header, block.data(), sizeof header);
  stored.resize(block.size() - sizeof header - wire::kSealedOverhead);
  BlockOpener opener;
  return opener.open(machine, key, header, std::span(block).subspan(sizeof header), stored);
}

TEST(Sealing, WhatIsOpenedIsWhatWasSent) {
  const MachineId machine = machine_id(1);
  const VolumeKey key(Key256::random());
  BlockSealer sealer;
  for (const bool compresses : {false, true}) {
    const Sent sent = sent_block(machine, compresses);
    const auto block = seal(sealer, machine, key, sent);
    wire::BlockReader reader(block, wire::BlockReader::Kind::stored);
    wire::BlockReader::Block found;
    const auto parsed = reader.next(found);
    ASSERT_TRUE(parsed) << parsed.error().message();
    EXPECT_TRUE(found.header.sealed());
    EXPECT_EQ(wire::block_hash(machine, found.header, found.stored), found.header.hash()) << "found without a key";
    wire::BlockHeader header;
    std::vector<std::byte> stored;
    const auto opened = open(machine, key, block, header, stored);
    ASSERT_TRUE(opened) << opened.error().message();
    EXPECT_EQ(std::memcmp(&header, &sent.header, sizeof header), 0);
    EXPECT_EQ(stored, sent.stored);
    // An agent may not send one.
    wire::BlockReader from_agent(block);
    EXPECT_FALSE(from_agent.next(found));
  }
}

TEST(Sealing, EveryByteThatIsChangedIsFound) {
  const MachineId machine = machine_id(1);
  const VolumeKey key(Key256::random());
  BlockSealer sealer;
  const Sent sent = sent_block(machine, true, 1);
  auto block = seal(sealer, machine, key, sent);
  wire::BlockHeader header;
  std::vector<std::byte> stored;
  for (std::size_t at = 0; at < block.size(); ++at) {
    block[at] ^= std::byte{0x10};
    wire::BlockHeader changed;
    std::memcpy(&changed, block.data(), sizeof changed);
    // The size and the flag say how to read it: where they are wrong it is not a sealed block at all.
    const bool hash_only = at >= offsetof(wire::BlockHeader, hash_low) && at < sizeof header;
    if (!hash_only) {
      const auto opened = open(machine, key, block, header, stored);
      EXPECT_FALSE(opened) << "byte " << at;
    }
    EXPECT_NE(wire::block_hash(machine, changed, std::span(block).subspan(sizeof header)), changed.hash())
        << "byte " << at;
    block[at] ^= std::byte{0x10};
  }
  EXPECT_TRUE(open(machine, key, block, header, stored));
}

TEST(Sealing, AnotherKeyAnotherMachineAndAnotherPlaceAreRefused) {
  const MachineId machine = machine_id(1);
  const VolumeKey key(Key256::random());
  BlockSealer sealer;
  auto block = seal(sealer, machine, key, sent_block(machine, false));
  wire::BlockHeader header;
  std::vector<std::byte> stored;
  EXPECT_EQ(open(machine, VolumeKey(Key256::random()), block, header, stored).error().code, Code::corrupt);
  EXPECT_EQ(open(machine_id(2), key, block, header, stored).error().code, Code::corrupt);
  std::memcpy(&header, block.data(), sizeof header);
  ++header.epoch;  // with a hash that fits: made on purpose
  const Hash128 hash = wire::block_hash(machine, header, std::span(block).subspan(sizeof header));
  header.hash_low = hash.low;
  header.hash_high = hash.high;
  std::memcpy(block.data(), &header, sizeof header);
  EXPECT_EQ(open(machine, key, block, header, stored).error().code, Code::corrupt);
}

TEST(Sealing, NothingOfTheContentStandsInTheClear) {
  const MachineId machine = machine_id(1);
  const VolumeKey key(Key256::random());
  BlockSealer sealer;
  const Sent sent = sent_block(machine, false);
  const auto block = seal(sealer, machine, key, sent);
  const auto holds = [&](std::span<const std::byte> what) {
    return std::search(block.begin(), block.end(), what.begin(), what.end()) != block.end();
  };
  EXPECT_FALSE(holds(std::span(sent.stored).first(8)));
  EXPECT_FALSE(holds(std::as_bytes(std::span(&sent.header.hash_low, 1))));
  EXPECT_FALSE(holds(std::as_bytes(std::span(&sent.header.hash_high, 1))));
}

TEST(Sealing, NoNonceComesTwice) {
  const MachineId machine = machine_id(1);
  const VolumeKey one(Key256::random()), two(Key256::random());
  const Sent sent = sent_block(machine, true, 1);
  std::set<std::string> nonces;
  std::size_t sealed = 0;
  for (int life = 0; life < 20; ++life) {
    BlockSealer shard, settler;  // both of one opening
    for (int i = 0; i < 50; ++i) {
      const auto block = seal(i % 2 == 0 ? shard : settler, machine, i % 3 == 0 ? one : two, sent);
      nonces.emplace(reinterpret_cast<const char*>(block.data()) + sizeof sent.header, kSealNonceSize);
      ++sealed;
    }
  }
  EXPECT_EQ(nonces.size(), sealed);
}

TEST(Sealing, HashesAreSealedOneForOne) {
  const VolumeKey key(Key256::random()), other(Key256::random());
  HashSealer hashes;
  const Hash128 hash{123, 456};
  const Hash128 sealed = hashes.seal(key, hash);
  EXPECT_NE(sealed, hash);
  EXPECT_EQ(hashes.seal(key, hash), sealed);
  EXPECT_NE(hashes.seal(other, hash), sealed);
  EXPECT_EQ(hashes.open(key, sealed), hash);
  EXPECT_NE(hashes.open(other, sealed), hash);
}

// --- master keys ---

TEST(MasterKeys, AreReadAsTheyWereWritten) {
  const MasterKeys first = MasterKeys("keys").with_new_key(1'000'000);
  const MasterKeys both = first.with_new_key(2'000'000);
  const auto read = MasterKeys::parse(both.text(), "keys");
  ASSERT_TRUE(read) << read.error().message();
  ASSERT_EQ(read->keys().size(), 2u);
  EXPECT_EQ(read->current().id, both.current().id);
  EXPECT_NE(read->current().id, first.current().id);
  EXPECT_EQ(read->keys()[1].id, first.current().id);
  EXPECT_EQ(read->keys()[1].key.bytes(), first.current().key.bytes());
  EXPECT_EQ(read->current().created_us, 2'000'000);
  EXPECT_EQ(read->current_only().keys().size(), 1u);
  EXPECT_EQ(MasterKeys::parse(both.text() + "\n# a note\n\n", "keys")->keys().size(), 2u);
}

TEST(MasterKeys, AFileThatIsWrongIsRefusedWithItsLine) {
  const MasterKeys keys = MasterKeys("dir/keys").with_new_key(0);
  const std::string good = keys.text();
  const std::size_t lines = static_cast<std::size_t>(std::ranges::count(good, '\n'));
  std::string changed = good;
  char& digit = changed[changed.find("key ", changed.find("\nkey ")) + 25];
  digit = digit == '0' ? '1' : '0';
  const auto wrong = MasterKeys::parse(changed, "dir/keys");
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, Code::corrupt);
  EXPECT_EQ(wrong.error().object, "dir/keys:" + std::to_string(lines));
  for (const std::string& text : {std::string(), std::string("# nothing\n"), std::string("key\n"),
                                  std::string("kee 00\n"), good.substr(0, good.size() - 40), good + good}) {
    EXPECT_FALSE(MasterKeys::parse(text, "keys")) << text;
  }
}

TEST(MasterKeys, AKeyThatIsMissingIsNamed) {
  const MasterKeys keys = MasterKeys("dir/keys").with_new_key(0);
  EXPECT_TRUE(keys.need({keys.current().id}, "p0"));
  const auto missing = keys.need({keys.current().id, MasterKeyId(0x1234)}, "p0");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Code::not_found);
  EXPECT_EQ(missing.error().object, "dir/keys");
  EXPECT_NE(missing.error().what.find("0000000000001234"), std::string::npos);
  EXPECT_FALSE(missing.error().remedy.empty());
}

TEST(MasterKeys, AWrappedKeyOpensAtItsPlaceOnly) {
  const Key256 master = Key256::random(), key = Key256::random();
  const WrapPlace place{.partition = PartitionId(3), .machine = machine_id(1), .volume = VolumeId(7)};
  const std::string wrapped = wrap_key(master, key, place);
  EXPECT_EQ(unwrap_key(master, wrapped, place)->bytes(), key.bytes());
  EXPECT_NE(wrap_key(master, key, place), wrapped) << "another nonce each time";
  EXPECT_FALSE(unwrap_key(Key256::random(), wrapped, place));
  EXPECT_FALSE(unwrap_key(master, wrapped, {PartitionId(4), place.machine, place.volume}));
  EXPECT_FALSE(unwrap_key(master, wrapped, {place.partition, machine_id(2), place.volume}));
  EXPECT_FALSE(unwrap_key(master, wrapped, {place.partition, place.machine, VolumeId(8)}));
  EXPECT_FALSE(unwrap_key(master, wrapped.substr(1), place));
  for (std::size_t at = 0; at < wrapped.size(); ++at) {
    std::string changed = wrapped;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    EXPECT_FALSE(unwrap_key(master, changed, place)) << at;
  }
}

TEST(MasterKeys, TheSuperblockListsThoseThatAreNeeded) {
  Superblock superblock{.partition = PartitionId(3), .salt = 5, .server_id = "aa", .master_keys = {}};
  EXPECT_NE(encode_superblock(superblock).find("format = 1\n"), std::string::npos) << "as older programs know it";
  superblock.master_keys = {MasterKeyId(0xabc), MasterKeyId(0xffffffffffffffff)};
  const std::string text = encode_superblock(superblock);
  EXPECT_NE(text.find("format = 2\n"), std::string::npos);
  const auto read = decode_superblock(text, "partition");
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, superblock);
}

}  // namespace
}  // namespace tidemark::storage

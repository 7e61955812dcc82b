#pragma once
// Values on the boundary of two levels. Up to the rounding of float sums such a value may take either level,
// and one that takes the other than the reference's moves hundreds of values behind it, so that a comparison
// of whole networks means something only once both sides resolved their ties alike. These pieces find the
// values next to a boundary and, where a block's output differs from the reference's, move one after another
// across it until it agrees. The bounds of the comparison stay as tight as they are.

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "autograd/core/node.h"
#include "nn/models/image_model.h"
#include "quant/quantizer/ofq_quantizer.h"
#include "quant/scheme/scheme.h"
#include "tests/support/model.h"

namespace lowbit::test {

/// Counts what passes the recorders and tie breakers of a network during a forward pass.
struct Clock {
  int64_t time = 0;
  std::vector<int64_t> blocks;  ///< when each block's output came
  size_t stop_after = SIZE_MAX;
  int64_t watch_from = INT64_MAX;  ///< look for ties from then on: a few more evaluations of every quantizer
  struct Stop {};
};

/// Stands before a quantizer whose scales are known.
struct TieBreaker final : Transform {
  static constexpr float kBands[] = {3e-7F, 1e-6F, 3e-6F, 1e-5F};
  struct Tie {
    float band;  ///< relative to the root mean square; near ones are the likelier
    int64_t index;
    float step;   ///< that takes the value to the other level
    float level;  ///< that one
  };
  struct Call {  ///< one use in a forward pass
    int64_t time = 0;
    std::vector<Tie> found;
    std::map<int64_t, Tie> moved;  ///< the ties that take the other level, by index
  };
  std::string slot;
  Quantizer* quantizer = nullptr;
  Clock* clock = nullptr;
  std::vector<Call> calls;
  size_t next = 0;

  Variable apply(const Variable& x) override {
    if (next == calls.size()) calls.emplace_back();
    Call& call = calls[next++];
    call.time = clock->time++;
    const bool watch = call.time >= clock->watch_from;
    if (!watch && call.moved.empty()) return quantizer->apply(x);
    std::vector<float> v = x.data().to_vector<float>();
    if (watch) find(call, v, x.data());
    for (const auto& [i, tie] : call.moved) v[size_t(i)] += tie.step;
    return quantizer->apply(call.moved.empty() ? x : Variable(Tensor::from(v, x.shape(), x.device())));
  }

 private:
  /// Float sums carry errors of a few 1e-7 of their largest terms; the values are of the order of their mean
  /// square.
  void find(Call& call, const std::vector<float>& v, const Tensor& x) const {
    double squares = 0;
    for (const float e : v) squares += double(e) * e;
    const double rms = std::sqrt(squares / double(v.size()));
    const auto levels = [&](float by) {
      std::vector<float> w = v;
      for (float& e : w) e += by;
      return quantizer->apply(Variable(Tensor::from(w, x.shape(), x.device()))).data().to_vector<float>();
    };
    const std::vector<float> y = levels(0);
    std::set<int64_t> known;
    call.found.clear();
    for (const float band : kBands) {
      const float step = float(band * rms);
      const std::vector<float> up = levels(step), down = levels(-step);
      // A scale that is computed from the values moves with them a little; a level is much more.
      for (size_t i = 0; i < v.size(); ++i)
        if (std::fabs(up[i] - down[i]) > 1e-3F * (std::fabs(up[i]) + std::fabs(down[i])) &&
            known.insert(int64_t(i)).second) {
          const bool above = std::fabs(up[i] - y[i]) > std::fabs(down[i] - y[i]);
          call.found.push_back({band, int64_t(i), above ? step : -step, above ? up[i] : down[i]});
        }
    }
  }
};

/// A tie whose level in the reference is known from an earlier search.
struct KnownTie {
  std::string slot;
  int64_t index;
  float level;
  bool operator==(const KnownTie& o) const {
    return slot == o.slot && index == o.index && std::fabs(level - o.level) <= 1e-6F * std::fabs(level);
  }
};

/// A quantized model whose slots pass tie breakers: the quantizers live in `quantized`, its float twin
/// computes with them. Weights with a stored scale have no tie breaker: nothing is computed there.
struct TieNetwork {
  std::unique_ptr<ImageModel> quantized, twin;
  std::vector<std::shared_ptr<TieBreaker>> breakers;
  std::vector<Tensor> outputs;      ///< of the blocks, in call order
  std::vector<std::string> blocks;  ///< modules in the order of their calls
  size_t depth;
  Clock clock;
  std::vector<KnownTie> known;      ///< resolve() moves these first
  int64_t evaluations = INT64_MAX;  ///< of the error by one resolve()

  TieNetwork(std::unique_ptr<ImageModel> q, std::unique_ptr<ImageModel> t, std::vector<std::string> names)
      : quantized(std::move(q)), twin(std::move(t)), blocks(std::move(names)), depth(blocks.size()) {
    std::map<std::string, Slot*> slots;
    for (const NamedSlot& s : twin->slots()) slots[s.name] = s.slot;
    for (const auto& [name, quantizer] : quantizers(*quantized)) {
      if (name.ends_with(".weight") && !dynamic_cast<StatsqQuantizer*>(quantizer)) {
        slots.at(name)->set(std::make_shared<Through>(quantizer), "");
        continue;
      }
      breakers.push_back(std::make_shared<TieBreaker>());
      breakers.back()->slot = name, breakers.back()->quantizer = quantizer, breakers.back()->clock = &clock;
      slots.at(name)->set(breakers.back(), "");
    }
    for (const std::string& name : std::set<std::string>(blocks.begin(), blocks.end())) {
      const auto recorder = probe<Recorder>(*twin, output_slot(*twin, name));
      recorder->clock = &clock, recorder->outputs = &outputs;
    }
    quantized->eval(), twin->eval();
  }

  /// Before a pass through a part of the twin.
  void rewind(size_t last = SIZE_MAX) {
    clock.time = 0, clock.blocks.clear(), clock.stop_after = last;
    outputs.clear();
    for (const auto& b : breakers) b->next = 0;
  }
  /// The logits, or nothing when it stops behind block `last`.
  Tensor forward(const Tensor& images, size_t last = SIZE_MAX) {
    rewind(last);
    try {
      return (*twin)(Variable(images)).data();
    } catch (const Clock::Stop&) {
      return {};
    }
  }
  size_t moved() const {
    size_t n = 0;
    for (const auto& b : breakers)
      for (const TieBreaker::Call& c : b->calls) n += c.moved.size();
    return n;
  }

  /// Moves ties until error() ≤ 1 or nothing helps. error() runs a part of the network; ties that came in
  /// [from(), to()) of its time count. The known ones come first, then the nearest, each alone; then those
  /// that lowered the error by a fiftieth together, the best first, as long as each does so again.
  bool resolve(const std::function<double()>& error, const std::function<int64_t()>& from,
               const std::function<int64_t()>& to) {
    double now = error();
    int64_t left = evaluations;
    for (bool better = true, first = true; better && now > 1; first = false) {
      better = false;
      clock.watch_from = from();
      now = error();
      clock.watch_from = INT64_MAX;
      if (first && move_known()) now = error();
      for (const float band : TieBreaker::kBands) {
        struct Candidate {
          double error;
          TieBreaker::Call* call;
          const TieBreaker::Tie* tie;
        };
        std::vector<Candidate> candidates;
        for (const auto& b : breakers)
          for (TieBreaker::Call& c : b->calls)
            if (b->next > 0 && c.time >= from() && c.time < to())
              for (const TieBreaker::Tie& t : c.found)
                if (t.band == band && !c.moved.count(t.index)) candidates.push_back({0, &c, &t});
        for (Candidate& c : candidates) {
          if (now <= 1 || --left < 0) return now <= 1;
          c.call->moved.emplace(c.tie->index, *c.tie);
          c.error = error();
          if (c.error <= 1) return true;
          c.call->moved.erase(c.tie->index);
        }
        std::stable_sort(candidates.begin(), candidates.end(),
                         [](const Candidate& a, const Candidate& b) { return a.error < b.error; });
        for (const Candidate& c : candidates) {
          if (now <= 1 || c.error > 0.98 * now) break;
          c.call->moved.emplace(c.tie->index, *c.tie);
          if (const double after = error(); after < 0.98 * now)
            now = after, better = true;
          else
            c.call->moved.erase(c.tie->index);
        }
        if (now <= 1 || better) break;  // what was moved changes what lies behind it
      }
      now = error();
    }
    return now <= 1;
  }

  /// Moves those of the ties found that are known; whether there were any.
  bool move_known() {
    bool any = false;
    for (const auto& b : breakers)
      for (TieBreaker::Call& c : b->calls)
        for (const TieBreaker::Tie& t : c.found)
          if (b->next > 0 &&
              std::find(known.begin(), known.end(), KnownTie{b->slot, t.index, t.level}) != known.end())
            any |= c.moved.emplace(t.index, t).second;
    return any;
  }

  /// One block alone; where it is given no block is called twice, and the walk need not begin at the images
  /// for every tie.
  std::function<Tensor(const std::string& block, const Tensor& x)> run_block;

  /// Walks through the network: error(b) of block b's output, at most 1 where it is the reference's. Where it
  /// is not, ties of the block and the one before it are moved. Returns how many blocks agree.
  size_t walk(const Tensor& images, const std::function<double(size_t)>& error) {
    for (size_t block = 0;;) {
      forward(images);
      while (block < depth && error(block) <= 1) ++block;
      if (block == depth) return depth;
      const size_t first = block > 0 ? block - 1 : 0;
      const std::vector<Tensor> before(outputs.begin(), outputs.begin() + int64_t(first));
      const bool alone = run_block && first > 0;
      const auto run = [&] {
        if (alone) {
          rewind();
          outputs = before;
          Tensor x = before.back();
          for (size_t b = first; b <= block; ++b) x = run_block(blocks[b], x);
        } else {
          forward(images, block);
        }
        return std::max(error(block), block > 0 ? error(first) : 0);
      };
      const auto from = [&] { return alone || first == 0 ? 0 : clock.blocks[first - 1]; };
      if (!resolve(run, from, [] { return INT64_MAX; })) return block;
    }
  }

 private:
  struct Through final : Transform {
    explicit Through(Quantizer* q) : quantizer(q) {}
    Variable apply(const Variable& x) override { return quantizer->apply(x); }
    Quantizer* quantizer;
  };
  struct Recorder final : Transform {
    Clock* clock = nullptr;
    std::vector<Tensor>* outputs = nullptr;
    Variable apply(const Variable& x) override {
      outputs->push_back(x.data());
      clock->blocks.push_back(clock->time++);
      if (outputs->size() > clock->stop_after) throw Clock::Stop{};
      return x;
    }
  };
};

}  // namespace lowbit::test

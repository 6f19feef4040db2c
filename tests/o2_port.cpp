// What ALICE's O2 does with the files of an export, written from its rules alone: see o2_port.py.
// o2_port FOLDER COLUMNS ROWS reads a line for each particle, nine features and ten normal numbers,
// and writes a line for each: the classifier's answer, then the photons of all hits, y fastest.
#include <onnxruntime_cxx_api.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

struct Scales {
  std::vector<float> means, scales;

  explicit Scales(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::vector<float>* part = nullptr;
    while (std::getline(file, line)) {
      if (line == "#means") {
        part = &means;
      } else if (line == "#scales") {
        part = &scales;
      } else if (!line.empty() && part != nullptr) {
        part->push_back(std::stof(line));
      }
    }
    if (means.size() != 9 || scales.size() != 9) {
      std::cerr << path << ": expected nine means and nine scales\n";
      std::exit(1);
    }
  }

  std::vector<float> apply(const std::vector<float>& raw) const {
    std::vector<float> scaled;
    for (std::size_t k = 0; k < raw.size(); ++k) {
      scaled.push_back((raw[k] - means[k]) / scales[k]);
    }
    return scaled;
  }
};

class Model {
 public:
  Model(Ort::Env& env, const std::string& path) : session_(env, path.c_str(), options()) {
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t k = 0; k < session_.GetInputCount(); ++k) {
      names_.push_back(session_.GetInputNameAllocated(k, allocator).get());
      auto shape = session_.GetInputTypeInfo(k).GetTensorTypeAndShapeInfo().GetShape();
      for (auto& size : shape) {
        size = size < 0 ? 1 : size;  // what is dynamic is one
      }
      shapes_.push_back(shape);
    }
    output_ = session_.GetOutputNameAllocated(0, allocator).get();
  }

  // the first output, as it lies in memory
  std::vector<float> ask(std::vector<std::vector<float>> inputs) {
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<Ort::Value> tensors;
    std::vector<const char*> names;
    if (inputs.size() != shapes_.size()) {
      std::cerr << "expected " << inputs.size() << " inputs, got " << shapes_.size() << "\n";
      std::exit(1);
    }
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      tensors.push_back(Ort::Value::CreateTensor<float>(memory, inputs[k].data(), inputs[k].size(),
                                                        shapes_[k].data(), shapes_[k].size()));
      names.push_back(names_[k].c_str());
    }
    const char* output = output_.c_str();
    auto results =
        session_.Run(Ort::RunOptions{}, names.data(), tensors.data(), tensors.size(), &output, 1);
    const float* values = results[0].GetTensorData<float>();
    return {values, values + results[0].GetTensorTypeAndShapeInfo().GetElementCount()};
  }

 private:
  static Ort::SessionOptions options() {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    return options;
  }

  Ort::Session session_;
  std::vector<std::string> names_;
  std::vector<std::vector<int64_t>> shapes_;
  std::string output_;
};

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "o2_port FOLDER COLUMNS ROWS\n";
    return 1;
  }
  const std::string folder = std::string(arguments[1]) + "/";
  const int columns = std::atoi(arguments[2]);
  const int rows = std::atoi(arguments[3]);
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "o2_port");
  Model classifier(env, folder + "classifier.onnx");
  Model neutron(env, folder + "neutron.onnx");
  const Scales of_classifier(folder + "classifier_scales.txt");
  const Scales of_neutron(folder + "neutron_scales.txt");
  std::vector<float> particle(9), noise(10);
  while (true) {
    for (auto& value : particle) {
      std::cin >> value;
    }
    for (auto& value : noise) {
      std::cin >> value;
    }
    if (!std::cin) {
      return 0;
    }
    const auto answer = classifier.ask({of_classifier.apply(particle)});
    std::cout << (std::round(answer[0]) != 0 ? 1 : 0);
    const auto pixels = neutron.ask({noise, of_neutron.apply(particle)});
    for (int x = 0; x < columns; ++x) {
      for (int y = 0; y < rows; ++y) {
        std::cout << ' ' << static_cast<int>(std::expm1(pixels[columns * y + x]));
      }
    }
    std::cout << '\n';
  }
}
